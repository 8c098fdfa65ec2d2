"""A training on disk: all that it needs to go on exactly, replaced after every epoch."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import save

from abcsearch.errors import CheckpointError, differences
from abcsearch.files import Anchor, is_there, replace_file
from abcsearch.formats import first_line
from abcsearch.training.begun import KEY

if TYPE_CHECKING:
    from torch import nn

    from abcsearch.data.split import Images

_CHECK = "crc32"  # of the metadata; older files have no checksum


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A training as it was after an epoch.

    Attributes:
        tensors: by name, on the CPU: weights, the optimiser's and generators' states ...
        state: plain JSON values: epochs done, losses, scores ...
    """

    tensors: Mapping[str, torch.Tensor]
    state: Mapping[str, Any]


class Checkpoint:
    """The file of a training, which nothing but the very same training is continued from.

    Attributes:
        path: a safetensors file, with the rest as JSON in its metadata.
    """

    def __init__(self, path: str | Path, identity: Mapping[str, Any]) -> None:
        """Prepares to read and write.

        Args:
            path: the file; its folder is made if missing, but not once more: one that is lost meanwhile is an error.
            identity: plain JSON values: what makes the training this very one.
        """
        self.path = Path(path)
        self._anchor = Anchor.of(self.path.parent)
        self._identity = json.loads(json.dumps(identity))

    def read(self) -> Saved | None:
        """Returns the training as it was left; None if there is no file. Makes its folder if missing.

        Raises:
            CheckpointError: if the file cannot be read, or is of another training.
            RunError: if it is no regular file.
        """
        self._anchor.check()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._anchor = Anchor.of(self.path.parent)
        if not is_there(self.path):
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                metadata = file.metadata()
                record = json.loads(metadata[KEY])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
            _verify(metadata, tensors)
            identity, state = record["identity"], record["state"]
        except Exception as error:  # what is raised depends on the damage
            reason = first_line(error)
            msg = f"{self.path} is no checkpoint of a training ({reason}); delete it to train from the beginning"
            raise CheckpointError(msg) from error
        if identity != self._identity:
            changes = "; ".join(differences(identity, self._identity, "there"))
            msg = (
                f"{self.path} holds another training, which has not been finished: {changes}. Finish that one with its "
                "own settings, or delete the file to begin this one"
            )
            raise CheckpointError(msg)
        return Saved(tensors=tensors, state=state)

    def write(self, saved: Saved) -> None:
        """Replaces the file, so that a kill at any instant leaves the old one or the new one.

        Raises:
            FolderGoneError: if the folder was renamed or deleted since the training began.
            OSError: if it cannot be written.
        """
        self._anchor.check()
        tensors = {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in saved.tensors.items()
        }
        text = json.dumps({"identity": self._identity, "state": dict(saved.state)})
        metadata = {KEY: text, _CHECK: _checksum(text, tensors)}
        replace_file(self.path, lambda path: path.write_bytes(save(tensors, metadata)))
        self._anchor = Anchor.of(self.path.parent)


def _verify(metadata: Mapping[str, str], tensors: Mapping[str, torch.Tensor]) -> None:
    """Raises ValueError if the content of a file is not what was written."""
    known = metadata.keys() - {KEY}
    if known and known != {_CHECK}:
        msg = f"unknown entries: {', '.join(sorted(known))}"
        raise ValueError(msg)
    if known and metadata[_CHECK] != _checksum(metadata[KEY], tensors):
        msg = "damaged: its checksum is not that of its content"
        raise ValueError(msg)


def _checksum(text: str, tensors: Mapping[str, torch.Tensor]) -> str:
    """Returns the CRC-32 of a text and of named tensors as eight hex digits."""
    check = zlib.crc32(text.encode())
    for name in sorted(tensors):
        check = zlib.crc32(_header(name, tensors[name]), check)
        check = zlib.crc32(_content(tensors[name]), check)
    return f"{check:08x}"


def _header(name: str, tensor: torch.Tensor) -> bytes:
    """Returns name, shape and type of a tensor."""
    return f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode()


def _content(tensor: torch.Tensor) -> bytes:
    """Returns the numbers of a tensor as they lie in memory."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def network_hash(model: nn.Module) -> str:
    """Returns a hash of a network's weights and buffers."""
    return tensors_hash(
        {
            name: value
            for name, value in model.state_dict().items()
            if isinstance(value, torch.Tensor)
        }
    )


def tensors_hash(tensors: Mapping[str, torch.Tensor]) -> str:
    """Returns a hash of named tensors: names, shapes, types and numbers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(_header(name, tensor))
        digest.update(_content(tensor))
    return digest.hexdigest()[:16]


def images_hash(split: Images) -> str:
    """Returns a hash of images and labels: of all pixels in memory; of streamed ones as their fingerprint."""
    digest = hashlib.sha256()
    split.update(digest)
    return digest.hexdigest()[:16]
