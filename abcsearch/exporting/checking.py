"""Whether what was written computes what the network does."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from abcsearch.errors import ExportError, one_line
from abcsearch.example import Example, Inputs, described, line_of, run_on
from abcsearch.exporting.structures import arranged, plain, tensors_by_name
from abcsearch.rng import torch_stream
from abcsearch.training.objectives import OUTPUTS, output_of
from abcsearch.training.scoring import device_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Frozen(nn.Module):
    """A network that computes as in evaluation mode in either mode: out of a file, or quantised.

    Exported graphs have one mode and refuse `train` and `eval`; this one takes them and does nothing.
    """

    def __init__(self, network: Callable[..., Any], call: Any = None) -> None:  # noqa: ANN401 - plain JSON values
        """Wraps a network.

        Args:
            network: a module, which then is one of this module's, or a function.
            call: what it takes, as `call_outline` returns it; None: one tensor, or it is not known.
        """
        super().__init__()
        self.network, self._call = network, call
        self.training = False

    def train(self, mode: bool = True) -> Frozen:  # noqa: FBT001, FBT002 - torch's signature
        """Returns this network as it is."""
        del mode
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - networks take and return anything
        """Maps a batch to what the network returns for it."""
        args, kwargs = arranged(self._call, args, kwargs)
        return self.network(*args, **kwargs)


class OutputOnly(nn.Module):
    """A network of one input whose forward pass returns its output and nothing else; see `output_of`."""

    def __init__(self, network: nn.Module) -> None:
        """Wraps a network."""
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps a batch to the network's output."""
        return output_of(self.network, self.network(x))


class Whole(nn.Module):
    """A network whose forward pass returns every tensor that it returns, in tuples, lists and dicts.

    Attributes:
        single: whether that is its output alone, see `output_of`.
    """

    def __init__(self, network: nn.Module, *, single: bool) -> None:
        """Wraps a network."""
        super().__init__()
        self.network, self.single = network, single

    def forward(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - networks take and return anything
        """Maps a batch to what the network returns for it."""
        returned = self.network(*args, **kwargs)
        return output_of(self.network, returned) if self.single else plain(returned)


def wrapped(network: nn.Module, batch: Inputs, returned: Any) -> nn.Module:  # noqa: ANN401 - networks return anything
    """Returns a network as a file holds it: what it returns is plain, and one tensor alone where it has one output.

    That is where it returns one tensor, or `OUTPUTS` says which one is its output.
    """
    single = isinstance(returned, torch.Tensor) or len(tensors_by_name(plain(returned))) == 1
    single = single or any(kind in OUTPUTS for kind in type(network).__mro__)
    if isinstance(batch, torch.Tensor) and single:
        return OutputOnly(network)
    return Whole(network, single=single)


def copied(model: nn.Module, device: torch.device | str | None = None) -> nn.Module:
    """Returns a network's copy in evaluation mode.

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
    return twin.to(device).eval()


def noise(example_input: Inputs, size: int) -> Inputs:
    """Returns a batch of standard normal numbers, of the shape (but for the batch) and type of an example.

    Of several inputs, those that are no floats are the example's own, over and over: they may be numbers of something.
    One alone that is no floats gets entries of the example at random: words that are in the table.
    """
    draws = torch_stream(0, "export", size)
    if isinstance(example_input, Example):
        return example_input.repeated(size).mapped(lambda x: _normal(x, draws))
    shape = (size, *example_input.shape[1:])
    if not example_input.is_floating_point():
        entries = example_input.detach().cpu().flatten()
        return entries[torch.randint(len(entries), shape, generator=draws)]
    return torch.randn(shape, generator=draws).to(example_input.dtype)


def _normal(leaf: Any, draws: torch.Generator) -> Any:  # noqa: ANN401 - arguments are anything
    """Returns standard normal numbers in place of a tensor of floats; anything else as it is."""
    if not isinstance(leaf, torch.Tensor) or not leaf.is_floating_point():
        return leaf
    return torch.randn(leaf.shape, generator=draws).to(leaf)


def run_checked(network: nn.Module, batch: Inputs, *, first: Inputs | None = None) -> Any:  # noqa: ANN401
    """Returns what a network makes of a batch, on its device.

    Args:
        network: in evaluation mode; it may change the batch in place.
        batch: on any device.
        first: a batch that it has run on before.

    Raises:
        ExportError: if it does not run.
    """
    try:
        return run_on(network, batch.to(device_of(network)).clone())
    except Exception as error:  # the user's forward
        what = described(batch, where=False)
        msg = f"the network does not run on a batch {what}: {one_line(str(error), 400)} ({line_of(error)})"
        msg += _advice(network, first) if first is not None else ""
        raise ExportError(msg) from error


def _advice(twin: nn.Module, example: Inputs) -> str:
    """Returns what to do about a network that runs on its example but not on every other batch."""
    try:
        run_on(twin, noise(example, len(example)).to(device_of(twin)))
    except Exception:  # noqa: BLE001 - the user's forward
        return "; it runs on the example, but not on standard normal numbers in its place, on which exports are checked"
    return "; it has to take batches of any size: read it off the input (x.shape[0], flatten(1))"


@dataclass(frozen=True, kw_only=True)
class Checks:
    """What a network returns on some batches.

    Attributes:
        batches: the inputs.
        outputs: what it returns on each: all tensors by name, see `tensors_by_name`.
    """

    batches: tuple[Inputs, ...]
    outputs: tuple[dict[str, torch.Tensor], ...]

    @classmethod
    def of(cls, twin: nn.Module, batches: Sequence[Inputs]) -> Checks:
        """Runs a network on batches.

        Args:
            twin: a copy: forward may have side effects.
            batches: on any device.

        Raises:
            ExportError: if it does not run on a batch, or returns no tensor, or numbers that are not finite.
        """
        outputs: list[dict[str, torch.Tensor]] = []
        with torch.inference_mode():
            for batch in batches:
                returned = run_checked(twin, batch, first=batches[0] if outputs else None)
                outputs.append(tensors_by_name(plain(returned)))
                if not outputs[-1]:
                    msg = "only networks that return tensors, alone or in tuples, lists, dicts or dataclasses, can be "
                    raise ExportError(f"{msg}exported, found {type(returned).__name__}")
                for name, tensor in outputs[-1].items():
                    if not bool(torch.isfinite(tensor).all()):
                        what = "" if name == "output" else f" as {name}"
                        msg = "only networks that return finite numbers can be exported, this one returns others"
                        raise ExportError(f"{msg}{what} on {described(batch, where=False)}")
        return cls(batches=tuple(batches), outputs=tuple(outputs))

    @property
    def largest(self) -> float:
        """The largest absolute number in any output."""
        return max(self.sizes().values())

    def sizes(self) -> dict[str, float]:
        """Returns the largest absolute number in each output."""
        sizes: dict[str, float] = {}
        for outputs in self.outputs:
            for name, tensor in outputs.items():
                largest = (
                    float(tensor.abs().max())
                    if tensor.numel() and tensor.dtype != torch.bool
                    else 0.0
                )
                sizes[name] = max(sizes.get(name, 0.0), largest)
        return sizes

    def differences(self, loaded: nn.Module) -> dict[str, float]:
        """Returns the largest absolute difference of each output; NaN if it has another shape or type, or is missing.

        Raises:
            ExportError: if the network cannot be run.
        """
        gaps: dict[str, list[float]] = {}
        with torch.inference_mode():
            for batch, expected in zip(self.batches, self.outputs, strict=True):
                device = next(iter(expected.values())).device
                try:
                    outputs = tensors_by_name(plain(run_on(loaded, batch.to(device).clone())))
                except (
                    Exception
                ) as error:  # the user's forward, on a network of other sizes; or what runs files
                    msg = f"the exported network loads but cannot be run on {described(batch, where=False)}: {error}"
                    raise ExportError(msg) from error
                for name in {**expected, **outputs}:
                    gaps.setdefault(name, []).append(_gap(expected.get(name), outputs.get(name)))
        # Of NaN and others NaN
        return {name: float(torch.tensor(every).max()) for name, every in gaps.items()}


def _gap(expected: torch.Tensor | None, actual: torch.Tensor | None) -> float:
    """Returns the largest absolute difference of two outputs; NaN where one is missing or of another shape."""
    if expected is None or actual is None or actual.shape != expected.shape:
        return math.nan
    return float((expected.double() - actual.double()).abs().max()) if actual.numel() else 0.0
