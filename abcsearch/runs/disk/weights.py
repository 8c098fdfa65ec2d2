"""Weights on disk: the user's checkpoints in, safetensors out."""

from __future__ import annotations

import json
import re
import warnings
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import save

from abcsearch.channels.baking import bake, computed
from abcsearch.errors import CheckpointError
from abcsearch.exporting.compressed import unpack
from abcsearch.files import CHECKSUM
from abcsearch.formats import first_line
from abcsearch.models.renaming import own_names, wrapper_prefix
from abcsearch.training.checkpoints import tensors_hash

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from torch import nn


# Where training scripts put the weights
_UNDER = ("state_dict", "model_state_dict", "model", "net")


def load_checkpoint(model: nn.Module, path: str | Path) -> None:
    """Loads trained weights into a network in place.

    Reads .safetensors, the .compressed of an export, and files of torch.save with a state dict (also under "state_dict"
    and the like, also with the prefix of a wrapper such as DataParallel or a LightningModule, also with the names that
    public checkpoints of the network have, see `models.renaming`); pickled code is never run.

    Raises:
        CheckpointError: if the file is missing or unreadable, or does not fit the network (naming the keys).

    Warns:
        UserWarning: if names without the prefix of the network's are left out.
    """
    saved = _read_state_dict(Path(path))
    prefix = wrapper_prefix(model, saved)
    others = [name for name in saved if not name.startswith(prefix)]
    if others:
        msg = f"checkpoint {path}: {type(model).__name__} is what is under {prefix!r} in it; left out: "
        warnings.warn(msg + _shortened(others), UserWarning, stacklevel=2)
    saved = {
        name.removeprefix(prefix): tensor
        for name, tensor in saved.items()
        if name.startswith(prefix)
    }
    origins = _origins(model, saved, path)
    tensors = {name: saved[origin] for name, origin in origins.items()}
    expected = model.state_dict()
    kinds = {
        "other shapes": [
            f"{_shown(name, origins)} {tuple(tensors[name].shape)} (the model has {tuple(expected[name].shape)})"
            for name in expected
            if name in tensors and tensors[name].shape != expected[name].shape
        ],
        "unexpected": [_shown(name, origins) for name in tensors if name not in expected],
        "missing": [
            n for n in expected if n not in tensors and not n.endswith("num_batches_tracked")
        ],
    }
    if any(kinds.values()):
        shown = "; ".join(f"{kind}: {_shortened(names)}" for kind, names in kinds.items() if names)
        msg = f"checkpoint {path} does not fit {type(model).__name__}: {shown}; does the model have the right options?"
        raise CheckpointError(msg)
    # Num_batches_tracked may be absent in old checkpoints
    model.load_state_dict(tensors, strict=False)


def _origins(model: nn.Module, names: Iterable[str], path: str | Path) -> dict[str, str]:
    """Returns the name in the file by the name in the network.

    Raises:
        CheckpointError: if two names in the file are one in the network.
    """
    origins: dict[str, str] = {}
    for origin, name in own_names(model, names).items():
        if name in origins:
            msg = f"checkpoint {path} holds {name} of {type(model).__name__} twice: as {origins[name]} and as {origin}"
            raise CheckpointError(f"{msg}; remove one of them")
        origins[name] = origin
    return origins


def _shown(name: str, origins: Mapping[str, str]) -> str:
    """Returns a name in the network, with that in the file where it is another one."""
    return name if origins[name] == name else f"{name} ({origins[name]} in the file)"


def _shortened(names: list[str]) -> str:
    """Returns the first names of a list and how many more there are."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Returns the tensors of a checkpoint by name."""
    if not path.is_file():
        what = (
            "is a folder, not a file"
            if path.is_dir()
            else "is no file"
            if path.exists()
            else "does not exist"
        )
        msg = f"checkpoint {path} {what}"
        raise CheckpointError(msg)
    try:
        if path.suffix == ".safetensors":
            return load_tensors(path)
        if path.suffix == ".compressed":
            return _vouched(*unpack(path.read_bytes()))
        with warnings.catch_warnings():  # of a TorchScript program, which is refused
            warnings.filterwarnings("ignore", message="'torch.load' received a zip file")
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (
        Exception
    ) as error:  # what is raised depends on the damage; pickled code is an error as well
        # Of a file that is none of torch's, its reader stumbles over a byte: KeyError(101)
        other = isinstance(error, LookupError)
        reason = "it is no file of torch.save" if other else first_line(error)
        msg = f"checkpoint {path} cannot be read: {reason}; save a state dict with torch.save or safetensors"
        msg = _more_than_weights(path, str(error)) or msg
        raise CheckpointError(msg) from error
    for key in _UNDER:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    pairs = content.items() if isinstance(content, dict) else [(None, content)]
    other = [
        name
        for name, value in pairs
        if not isinstance(name, str) or not isinstance(value, torch.Tensor)
    ]
    if other:
        given = (
            f"{other[:5]} are not tensors"
            if isinstance(content, dict)
            else f"found {type(content).__name__}"
        )
        msg = f"checkpoint {path} holds no state dict (names and tensors, also under {', '.join(_UNDER)}): {given}"
        raise CheckpointError(msg)
    return content


def _more_than_weights(path: Path, error: str) -> str:
    """Returns what to do with a file of torch that holds code or objects, which are not read; "" for any other."""
    objects = re.search(r"Unsupported (?:global: GLOBAL|class) (\S+)", error)
    aside = str(path.with_name(f"{path.stem}-weights.pt"))
    if "TorchScript" in error:
        take, what = (
            f"torch.jit.load('{path}').state_dict()",
            "a TorchScript program, not weights alone",
        )
    elif objects is not None:
        what = f"pickled objects ({objects[1]}), not weights alone"
        take = f"(lambda c: c.state_dict() if hasattr(c, 'state_dict') else c)(torch.load('{path}', 'cpu', "
        take += "weights_only=False))"
    else:
        return ""
    again = (
        f"""python -c "import torch; c = {take}; torch.save(c.get('state_dict', c), {aside!r})\""""
    )
    return (
        f"checkpoint {path} holds {what}; reading such things can run code, so it is not done here. If you trust the "
        f"file, make one of its weights, in the folder from which its classes can be imported, and give that: {again}"
    )


def load_brought(model: nn.Module, path: str | Path) -> None:
    """Loads the weights of a checkpoint of the user's into a network in place, as `load_checkpoint`.

    Where the network computes weights (weight norm ...) and the file has plain ones, as that of a run's base network
    has, they are plain in the network afterwards.

    Raises:
        CheckpointError: also if weights are NaN or infinite: every score of the network would be.
    """
    try:
        load_checkpoint(model, path)
    except CheckpointError as error:
        layers = computed(model)
        if not layers:
            raise
        bake(model, layers)
        try:
            load_checkpoint(model, path)
        except CheckpointError:
            raise error from None
    odd = [
        f"{name} ({int((~tensor.isfinite()).sum())} of {tensor.numel():,})"
        for name, tensor in model.state_dict().items()
        if tensor.is_floating_point() and not bool(tensor.isfinite().all())
    ]
    if odd:
        msg = f"checkpoint {path} has weights that are NaN or infinite: {_shortened(odd)}; its training has diverged: "
        raise CheckpointError(f"{msg}take an earlier checkpoint")


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Returns the tensors of a .safetensors file by name.

    Raises:
        CheckpointError: if the file is one of ours, and holds something else than was written.
        SafetensorError, OSError: if it cannot be read.
    """
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    return _vouched(tensors, metadata)


def _vouched(
    tensors: dict[str, torch.Tensor], metadata: Mapping[str, str]
) -> dict[str, torch.Tensor]:
    """Returns the tensors of a file whose checksum, if it has one, is theirs; raises CheckpointError otherwise."""
    written = metadata.get(CHECKSUM)
    if written not in (None, tensors_hash(tensors)):  # files of others, and old ones, have none
        msg = "damaged: its checksum is not that of its content"
        raise CheckpointError(msg)
    return tensors


def checkpoint_path(stem: Path, *settings: Any) -> Path:  # noqa: ANN401 - plain JSON values
    """Returns where a training is kept until it is finished: one with other settings is beside it, and not lost.

    Args:
        stem: path of what it leads to, without its suffix.
        settings: that decide the training.
    """
    text = json.dumps(settings, sort_keys=True)
    return stem.with_name(f"{stem.name}-{zlib.crc32(text.encode()):08x}.checkpoint")


def state_bytes(model: nn.Module) -> int:
    """Returns the bytes of a network's parameters and buffers."""
    tensors = [value for value in model.state_dict().values() if isinstance(value, torch.Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def weights_writer(model: nn.Module) -> Callable[[Path], None]:
    """Returns a function that writes a network's state to a path as safetensors."""
    return tensors_writer(model.state_dict())


def tensors_writer(state: Mapping[str, torch.Tensor]) -> Callable[[Path], None]:
    """Returns a function that writes tensors by name to a path as safetensors with a checksum."""
    tensors = {
        name: t.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, t in state.items()
    }
    metadata = {CHECKSUM: tensors_hash(tensors)}

    def write(path: Path) -> None:
        # Not save_file: its files are readable by their owner only
        path.write_bytes(save(tensors, metadata))

    return write
