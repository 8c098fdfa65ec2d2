"""Files of tensors read without torch: the same hash as in memory, and no flipped byte goes unseen."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from abcsearch.files import CHECKSUM
from abcsearch.runs.disk.weights import tensors_writer
from abcsearch.stored import content_hash, read_header
from abcsearch.training.checkpoints import tensors_hash

KINDS = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
]
shapes = st.lists(st.integers(0, 3), max_size=3).map(tuple)
states = st.dictionaries(
    st.text(min_size=1, max_size=5), st.tuples(st.sampled_from(KINDS), shapes), max_size=4
)


def made(kinds):
    draws = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randn(shape, generator=draws).mul(9).to(kind)
        for name, (kind, shape) in kinds.items()
    }
    return {name: tensor for name, tensor in tensors.items() if name != "__metadata__"}


@given(states)
def test_a_file_has_the_hash_of_what_was_written(tmp_path_factory, kinds):
    tensors, path = made(kinds), tmp_path_factory.mktemp("stored") / "x.safetensors"
    tensors_writer(tensors)(path)
    header = read_header(path)
    assert {name: (t.kind, t.shape) for name, t in header.tensors.items()} == {
        name: (str(t.dtype), tuple(t.shape)) for name, t in tensors.items()
    }
    assert header.metadata[CHECKSUM] == content_hash(path) == tensors_hash(tensors)


def damaged(path):
    """Whether a file is told from the one that was written."""
    try:
        return read_header(path).metadata.get(CHECKSUM) != content_hash(path)
    except ValueError:
        return True


def test_every_flipped_cut_or_added_byte_is_told(tmp_path):
    path = tmp_path / "x.safetensors"
    tensors_writer({"weight": torch.arange(6.0).reshape(2, 3), "count": torch.tensor(7)})(path)
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert damaged(path), place
        path.write_bytes(whole[:place])
        assert damaged(path), place
    path.write_bytes(whole + b"\0")
    assert damaged(path)
    path.write_bytes(whole)
    assert not damaged(path)


@pytest.mark.parametrize(
    "content", [b"", b"x", b"\xff" * 64, b"\2\0\0\0\0\0\0\0[]", b"\2\0\0\0\0\0\0\0{}"]
)
def test_what_is_no_file_of_tensors_is_an_error_of_one_kind(tmp_path, content):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    if content.endswith(b"{}"):
        assert read_header(path).tensors == {}
        return
    with pytest.raises(ValueError, match="it"):
        read_header(path)


def test_what_has_been_fine_tuned_is_asked_without_torch():
    modules = ("results.finetuned_files", "stored", "scratch", "training.begun", "files")
    code = f"import sys, {', '.join(f'abcsearch.{name}' for name in modules)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
