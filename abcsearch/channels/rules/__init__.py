"""How channels pass through operations: `table` says what a rule is, the others hold the rules.

`layers`: convolutions, linear layers, normalisation. `pointwise`: entry by entry, and windows over space. `movement`
and `parts`: what moves entries without mixing them. `contraction`: einsum and matrix products. `sizes`: numbers that
forward reads off shapes.
"""

from abcsearch.channels.flow import Flow
from abcsearch.channels.operands import Layout, NoRuleError, Op
from abcsearch.channels.rules import contraction, layers, movement, parts, pointwise
from abcsearch.channels.rules.sizes import number
from abcsearch.channels.rules.table import RULES, find_rule, rule_for, ruled_class

__all__ = [
    "RULES",
    "Flow",
    "Layout",
    "NoRuleError",
    "Op",
    "contraction",
    "find_rule",
    "layers",
    "movement",
    "number",
    "parts",
    "pointwise",
    "rule_for",
    "ruled_class",
]
