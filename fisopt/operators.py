"""Declaring operators of other libraries by their kind; `fisopt.operator` declares any."""

from fisopt.rewrite.ops.own_attention import attention

__all__ = ["attention"]
