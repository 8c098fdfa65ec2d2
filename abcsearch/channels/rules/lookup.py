"""Tables whose rows are looked up: embeddings, whose dimensions are channels."""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import nn

from abcsearch.channels.flow import Flow
from abcsearch.channels.operands import LOOSE, Layout, NoRuleError, Op, Operand
from abcsearch.channels.rules.table import numbers_plain, rule_for


@rule_for(nn.Embedding, nn.EmbeddingBag, F.embedding, F.embedding_bag, thorough=True)
def lookup(flow: Flow, op: Op) -> Layout:
    """New channels at the last axis: those of the table, whose rows all stay. Looking up multiplies nothing.

    A bag of rows is their sum, mean or largest entries, channel by channel. What says which rows never changes.
    """
    indices, table = op.tensor(), _table(flow, op)
    bag = op.target in (nn.EmbeddingBag, F.embedding_bag)
    numbers_plain([operand for operand in op.operands if not operand.is_tensor])
    others = [operand for operand in op.operands if operand is not indices and operand is not table]
    if any(operand.layout is not None for operand in others):
        msg = "its offsets or weights of samples follow channels"
        raise NoRuleError(msg)
    name = str(table.parameter)
    for positions in indices.touched:
        flow.fix(positions, f"{op.name}: it picks rows of {name}")
    if indices.parameter is not None:
        flow.freeze(indices.parameter, f"{op.name}: it picks rows of {name}")
    made = flow.fresh(table.value[1], op.path or name.removesuffix(".weight"))
    if op.plain(3, "max_norm", getattr(op.module, "max_norm", None)) is not None:
        flow.fix(made, f"{op.name}: max_norm rescales rows over all of their channels")
    flow.parameter(name, 1, made)
    return Layout(1 if bag else len(indices.value), made)


def _table(flow: Flow, op: Op) -> Operand:
    """Returns the weight, a parameter or buffer (rows, channels); raises NoRuleError for anything else."""
    table = op.argument(1, "weight")
    if op.module is not None:
        weight = op.module.weight
        table = Operand(value=weight.shape, parameter=flow.canonical.get(id(weight)))
    if not isinstance(table, Operand) or type(table.parameter) is not str:
        msg = f"it looks up rows of {LOOSE}"
        raise NoRuleError(msg)
    if table.layout is not None:
        msg = "its table has one row or one channel"
        raise NoRuleError(msg)
    return table
