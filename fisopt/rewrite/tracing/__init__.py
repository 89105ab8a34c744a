"""Running a model to capture it: what it reads and writes, its export, and templates of it."""
