"""One HTML file that shows what was measured; it needs neither a server nor a network."""
