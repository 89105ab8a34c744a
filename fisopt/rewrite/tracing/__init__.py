"""Running a model to capture it: what it reads and writes, and the operators that it runs."""
