"""Hand-written Triton kernels, a module of the same name for each contract that has one."""
