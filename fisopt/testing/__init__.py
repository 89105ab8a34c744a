"""Test kit for passes, operators and adapters of your own; it does not need pytest."""

from fisopt.testing.checks import assert_program, check_contract, check_pass
from fisopt.testing.zoo import KINDS, Case, zoo

__all__ = ["KINDS", "Case", "assert_program", "check_contract", "check_pass", "zoo"]
