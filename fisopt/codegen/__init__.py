"""From a rewritten Program to something that runs: lowering and compilation."""
