"""How operators relate the dimensions of their operands to those of their result."""

from fisopt.rewrite.relations import contract, numbered, pad, pointwise, reshape
from fisopt.rewrite.relations.cut import split_dim, virtual_shape
from fisopt.rewrite.relations.table import Link, Relation, relation, relation_rule

__all__ = [
    "Link",
    "Relation",
    "contract",
    "numbered",
    "pad",
    "pointwise",
    "relation",
    "relation_rule",
    "reshape",
    "split_dim",
    "virtual_shape",
]
