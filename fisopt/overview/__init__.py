"""What runs in a pipeline and what it takes: steps, times, memory, what was captured again."""
