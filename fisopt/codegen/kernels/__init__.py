"""Kernels of operators: a module of the same name for each contract that has one, and its parts."""
