"""What runs in a pipeline: the optimised module, and which step and branch it is in."""
