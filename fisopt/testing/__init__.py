"""What a pass, an operator or an adapter of your own is tested with; nothing here needs pytest."""

from fisopt.testing.checks import assert_program, check_contract, check_pass
from fisopt.testing.zoo import KINDS, Case, zoo

__all__ = ["KINDS", "Case", "assert_program", "check_contract", "check_pass", "zoo"]
