"""From a rewritten Program to something that runs: lowering and compilation."""

from __future__ import annotations

from fisopt.codegen import bindings as bindings  # binds the kernels to their contracts
