"""How channels pass through operations: `table` says what a rule is, the others hold the rules.

`layers`: convolutions and linear layers. `norms`: normalisation. `pointwise`: entry by entry, and windows over space.
`movement` and `split_concat`: what moves entries without mixing them. `contraction`: einsum and matrix products.
`lookup`: embeddings. `attention` and `recurrent`: what they say. `sizes`: numbers that forward reads off shapes.
"""

from abcsearch.channels.flow import Flow
from abcsearch.channels.operands import Layout, NoRuleError, Op
from abcsearch.channels.rules import (
    attention,
    contraction,
    layers,
    lookup,
    movement,
    norms,
    pointwise,
    recurrent,
    split_concat,
)
from abcsearch.channels.rules.sizes import number
from abcsearch.channels.rules.table import RULES, find_rule, rule_for, ruled_class

__all__ = [
    "RULES",
    "Flow",
    "Layout",
    "NoRuleError",
    "Op",
    "attention",
    "contraction",
    "find_rule",
    "layers",
    "lookup",
    "movement",
    "norms",
    "number",
    "pointwise",
    "recurrent",
    "rule_for",
    "ruled_class",
    "split_concat",
]
