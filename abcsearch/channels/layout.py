"""How images and weights lie in memory: channels last, which is fastest, or row by row, where forward asks for that.

`x.view(len(x), -1)` behind a convolution computes only what lies row by row: such networks run on batches that do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from abcsearch.channels.fast.cloning import clone, keeping_buffers
from abcsearch.example import ROWS, in_rows, laid, run_on, wants_rows
from abcsearch.rng import torch_seeded

if TYPE_CHECKING:
    from torch import nn

    from abcsearch.example import Inputs

_SAID = "view size is not compatible with input tensor's size and stride"  # by torch, of a view that would be a copy


def laid_out(network: nn.Module, device: torch.device | None = None) -> None:
    """Moves a network to a device, with weights that are channels_last, in place; see `fit_layout` for those that are not.

    Weights of convolutions of volumes stay contiguous, as their images are.
    """
    if not any(tensor.dim() == 5 for tensor in (*network.parameters(), *network.buffers())):
        network.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] - overload without it
    else:
        network.to(device)
        for tensor in (*network.parameters(), *network.buffers()):
            if tensor.dim() == 4:
                tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
    for module in network.modules():
        if wants_rows(module):
            lay_rows(module)


def fit_layout(network: nn.Module, example: Inputs) -> None:
    """Finds out whether a network runs only on batches that lie row by row, once; it and its copies then remember.

    Weights of one that does are laid out so, in place. One that does not run at all is left to those who run it.

    Args:
        network: whose batches would be channels_last, which no network without a convolution notices.
        example: a batch, of one image as well.
    """
    if ROWS in vars(network):
        return
    device = next((tensor.device for tensor in network.parameters() if tensor.dim() == 4), None)
    if device is None:
        return
    # Weights that are laid out where nothing can be differentiated could not be trained
    with (
        torch.inference_mode(mode=False),
        torch.no_grad(),
        torch_seeded(0, "layout"),
        keeping_buffers(network),  # which a copy may still write to
    ):
        try:
            twin = clone(network, {}).eval()
            laid_out(twin)
            run_on(twin, laid(example.to(device)).clone())  # forward may change it in place
            rows = False
        except Exception as error:  # noqa: BLE001 - the network's own, of many kinds
            if _SAID not in str(error):
                return
            rows = True
        vars(network)[ROWS] = rows
        if rows:
            lay_rows(network)


def fitting(network: nn.Module, batch: Inputs) -> Inputs:
    """Returns a batch as a network runs on it, see `fit_layout`."""
    fit_layout(network, batch)
    return in_rows(batch) if wants_rows(network) else batch


def lay_rows(network: nn.Module) -> nn.Module:
    """Lays the weights of a network out row by row, in place; returns it."""
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.dim() == 4:
            tensor.data = in_rows(tensor.data)
    return network
