"""Emission: connected regions of pointwise, norm and index operators as Triton kernels."""
