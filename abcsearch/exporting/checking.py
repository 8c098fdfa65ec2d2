"""Whether what was written computes what the network does."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from abcsearch.errors import ExportError, ModelError, one_line
from abcsearch.rng import torch_stream
from abcsearch.training.objectives import output_of
from abcsearch.training.scoring import device_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Frozen(nn.Module):
    """A network that computes as in evaluation mode in either mode: out of a file, or quantised.

    Exported graphs have one mode and refuse `train` and `eval`; this one takes them and does nothing.
    """

    def __init__(self, network: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Wraps a network.

        Args:
            network: a module, which then is one of this module's, or a function.
        """
        super().__init__()
        self.network = network
        self.training = False

    def train(self, mode: bool = True) -> Frozen:  # noqa: FBT001, FBT002 - torch's signature
        """Returns this network as it is."""
        del mode
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps a batch to what the network returns for it."""
        return self.network(x)


class OutputOnly(nn.Module):
    """A network whose forward pass returns its output and nothing else; see `output_of`."""

    def __init__(self, network: nn.Module) -> None:
        """Wraps a network."""
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps a batch to the network's output."""
        return output_of(self.network, self.network(x))


def copied(model: nn.Module, device: torch.device | str | None = None) -> nn.Module:
    """Returns a network's copy in evaluation mode that returns one tensor.

    Args:
        model: not changed.
        device: where the copy is; None leaves it where the network is.

    Raises:
        ExportError: if it cannot be copied.
    """
    try:
        twin = copy.deepcopy(model)
    except Exception as error:  # tensors with a history, locks, open files
        msg = f"the network cannot be copied (copy.deepcopy), which exporting needs: {one_line(str(error), 200)}; "
        msg += "it keeps something besides parameters, buffers and plain values. After torch.nn.utils.weight_norm or "
        msg += "spectral_norm: remove_weight_norm(layer), or the one in torch.nn.utils.parametrizations"
        raise ExportError(msg) from error
    return OutputOnly(twin.to(device)).eval()


def noise(example_input: torch.Tensor, size: int) -> torch.Tensor:
    """Returns a batch of standard normal numbers, of the shape (but for the batch) and type of an example."""
    shape = (size, *example_input.shape[1:])
    return torch.randn(shape, generator=torch_stream(0, "export", size)).to(example_input.dtype)


def _advice(twin: nn.Module, example: torch.Tensor) -> str:
    """Returns what to do about a network that runs on its example but not on every other batch."""
    try:
        twin(noise(example, len(example)).to(device_of(twin)))
    except Exception:  # noqa: BLE001 - the user's forward
        return "; it runs on the example, but not on standard normal numbers in its place, on which exports are checked"
    return "; it has to take batches of any size: read it off the input (x.shape[0], flatten(1))"


@dataclass(frozen=True, kw_only=True)
class Checks:
    """What a network returns on some batches.

    Attributes:
        batches: the inputs.
        outputs: what it returns on each.
    """

    batches: tuple[torch.Tensor, ...]
    outputs: tuple[torch.Tensor, ...]

    @classmethod
    def of(cls, twin: nn.Module, batches: Sequence[torch.Tensor]) -> Checks:
        """Runs a network on batches.

        Args:
            twin: what `copied` returns: forward may have side effects.
            batches: on any device.

        Raises:
            ExportError: if it does not run on a batch, or returns something else than one finite tensor.
        """
        device = device_of(twin)
        outputs: list[torch.Tensor] = []
        with torch.inference_mode():
            for batch in batches:
                try:
                    outputs.append(twin(batch.to(device)))
                except ModelError as error:
                    msg = f"only networks that return one finite tensor can be exported: {error}"
                    raise ExportError(msg) from error
                except Exception as error:  # the user's forward
                    msg = f"the network does not run on a batch {tuple(batch.shape)} {batch.dtype}: {error}"
                    msg += _advice(twin, batches[0]) if outputs else ""
                    raise ExportError(msg) from error
                if not bool(torch.isfinite(outputs[-1]).all()):
                    msg = "only networks that return one finite tensor can be exported, "
                    msg += f"this one returns numbers that are not finite on {tuple(batch.shape)}"
                    raise ExportError(msg)
        return cls(batches=tuple(batches), outputs=tuple(outputs))

    @property
    def largest(self) -> float:
        """The largest absolute output."""
        return max(float(output.abs().max()) for output in self.outputs)

    def difference(self, loaded: nn.Module) -> float:
        """Returns the largest absolute difference of a network's outputs to these; NaN if they have another shape.

        Raises:
            ExportError: if it cannot be run.
        """
        gaps: list[torch.Tensor] = []
        with torch.inference_mode():
            for batch, expected in zip(self.batches, self.outputs, strict=True):
                try:
                    found = output_of(loaded, loaded(batch.to(expected.device)))
                except Exception as error:  # the user's forward, on a network of other sizes; or what runs files
                    msg = f"the exported network loads but cannot be run on {tuple(batch.shape)}: {error}"
                    raise ExportError(msg) from error
                if found.shape != expected.shape:
                    return float("nan")
                gaps.append((expected.double() - found.double()).abs().max())
        return float(torch.stack(gaps).max())
