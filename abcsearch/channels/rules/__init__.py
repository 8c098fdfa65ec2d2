"""How channels pass through operations: `table` says what a rule is, the others hold the rules.

`layers`: convolutions, linear layers, normalisation. `pointwise`: entry by entry, and windows over space. `movement`:
what moves entries without mixing them. `contraction`: einsum and matrix products. `sizes`: numbers read off shapes.
"""

from abcsearch.channels.flow import Flow, Layout, NoRuleError, Op
from abcsearch.channels.rules import contraction, layers, movement, pointwise
from abcsearch.channels.rules.sizes import number
from abcsearch.channels.rules.table import RULES, find_rule, rule_for

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
    "pointwise",
    "rule_for",
]
