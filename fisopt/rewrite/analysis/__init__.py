"""What a graph is made of, found from structure."""
