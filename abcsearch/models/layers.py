"""What several networks are built from, and the checks that they share."""

from __future__ import annotations

from torch import nn

from abcsearch.errors import ModelError


def conv_norm(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1, conv_groups: int = 1
) -> nn.Sequential:
    """Returns convolution (padded so that stride 1 keeps the size, no bias), batch norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(
            in_channels, out_channels, kernel, stride, kernel // 2, groups=conv_groups, bias=False
        ),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )


def init_convolutions(network: nn.Module) -> None:
    """Draws all convolution weights anew: normal, variance 2 / (outputs per input), which keeps that of gradients.

    Source: He et al., Delving deep into rectifiers (ICCV 2015), section 2.2, backward case.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def check_counts(network: str, **counts: object) -> None:
    """Checks the sizes that a network is asked for.

    Args:
        network: what is built, for the message.
        counts: the sizes by option.

    Raises:
        ModelError: with all that are not whole numbers of at least 1.
    """
    wrong = {
        name: n
        for name, n in counts.items()
        if not isinstance(n, int) or isinstance(n, bool) or n < 1
    }
    if wrong:
        given = ", ".join(f"{name}={value!r}" for name, value in wrong.items())
        msg = f"{network}: {', '.join(counts)} are whole numbers, at least 1; found {given}; set a whole number there"
        raise ModelError(msg)
