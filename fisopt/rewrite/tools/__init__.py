"""What other people's tools leave in a model, and how a graph follows it; one file a tool."""
