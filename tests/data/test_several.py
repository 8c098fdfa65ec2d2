"""Data of networks with several inputs: items in, batches as PyTorch would collate them, and what is no such item."""

import pickle
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import default_collate

from abcsearch.data.split import Split
from abcsearch.data.splits import Data
from abcsearch.data.stream import Stream
from abcsearch.data.user_data import from_datasets
from abcsearch.errors import ConfigError, DataError
from abcsearch.example import Example
from abcsearch.training.mixing import check_mixing
from abcsearch.training.recipe import Recipe

LEAVES = {
    "image": lambda i: torch.full((3, 4, 4), float(i)),
    "signal": lambda i: np.full((2, 5), i / 2),
    "meta": lambda i: np.float64(i) * np.ones(3),
    "kind": lambda i: i % 3,
    "on": lambda i: bool(i % 2),
    "weight": lambda i: i / 4,
    "token": lambda i: torch.tensor([i, i + 1], dtype=torch.int32),
}


class Items:
    """A Dataset of PyTorch whose items are made of LEAVES."""

    def __init__(self, make, count=12):
        self.make, self.count = make, count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index >= self.count:
            raise IndexError(index)
        return self.make(index)


def structures():
    leaf = st.sampled_from(sorted(LEAVES))
    nested = st.recursive(
        leaf,
        lambda inner: st.one_of(
            st.tuples(inner, inner),
            st.dictionaries(st.sampled_from(["a", "b", "c"]), inner, min_size=1),
        ),
        max_leaves=5,
    )
    return st.one_of(
        st.tuples(nested, nested),
        st.dictionaries(st.sampled_from(["u", "v", "w"]), nested, min_size=1),
    )


def made(structure, index):
    if isinstance(structure, str):
        return LEAVES[structure](index)
    if isinstance(structure, tuple):
        return tuple(made(item, index) for item in structure)
    return {key: made(item, index) for key, item in structure.items()}


def collated(structure, indices):
    """What PyTorch makes of these items, in the types that networks here get."""
    batch = [made(structure, index) for index in indices]

    def cast(item):
        if isinstance(item, torch.Tensor):
            return (
                item.float()
                if item.is_floating_point()
                else item
                if item.dtype == torch.bool
                else item.long()
            )
        return (
            {k: cast(v) for k, v in item.items()}
            if isinstance(item, dict)
            else tuple(cast(v) for v in item)
        )

    return Example.of(cast(default_collate(batch)))


def same(a, b):
    assert list(a.entries) == list(b.entries)
    for name, x in a.entries.items():
        assert (x.dtype, x.shape) == (b.entries[name].dtype, b.entries[name].shape)
        assert torch.equal(x, b.entries[name])


@settings(max_examples=10)
@given(structures())
def test_batches_are_what_pytorch_collates_in_memory_and_streamed(structure):
    source = Items(lambda index: (made(structure, index), index % 2))
    held = Data.of(source, source)
    labels = torch.arange(12) % 2
    stream = Stream(source=source, labels=labels, workers=0)
    for split in (held.test, stream, pickle.loads(pickle.dumps(held.test)), stream.loaded()):
        for number, (inputs, own) in enumerate(split.batches(5)):
            positions = range(5 * number, min(5 * number + 5, 12))
            same(inputs, collated(structure, positions))
            assert own.tolist() == [i % 2 for i in positions]
    for split in (held.test, stream):
        for inputs, own in split.shuffled(4, torch.Generator().manual_seed(1)):
            # Rows of all inputs and labels stay together: each row is one item.
            for row, label in enumerate(own.tolist()):
                assert any(
                    _equal(inputs[row : row + 1], collated(structure, [i])) and i % 2 == label
                    for i in range(12)
                )
    same(held.example, held.train[:1] if isinstance(held.train, Example) else held.train.images[:1])
    assert held.fingerprint() == Data.of(source, source).fingerprint()


def _equal(a, b):
    return all(torch.equal(x, b.entries[name]) for name, x in a.entries.items())


def test_arrays_of_all_images_and_items_are_the_same_data():
    both = {"image": np.random.default_rng(0).random((12, 3, 4, 4)), "kind": np.arange(12) % 3}
    labels = np.arange(12) % 2
    items = [({key: value[i] for key, value in both.items()}, int(labels[i])) for i in range(12)]
    named = [{**inputs, "label": label, "id": i} for i, (inputs, label) in enumerate(items)]
    expected = Data.of((both, labels), (both, labels))
    for way in (items, (Example(kwargs=both), labels)):
        assert Data.of(way, way).fingerprint() == expected.fingerprint()
    assert Data.of(named, named, inputs=["image", "kind"]).fingerprint() == expected.fingerprint()
    assert Data.of(named, named).train.shape == (3, 4, 4)  # as ever: the image alone
    rest = [{"left": x["image"], "right": x["image"], "label": y} for x, y in items]
    assert Data.of(rest, rest).train.shape == {"left": [3, 4, 4], "right": [3, 4, 4]}
    pair = from_datasets(
        (Items(named.__getitem__), Items(named.__getitem__)), inputs=["image", "kind"], stream=True
    )
    same(next(pair.test.batches(12))[0], Example.of(expected.test.images))


def of(make, **options):
    return lambda: Data.of(Items(make), Items(make), **options)


IMAGE = torch.ones(3, 4, 4)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (of(lambda i: ({"a": IMAGE} if i == 5 else {"a": IMAGE, "b": i}, i % 2)), "image 5 of Items lacks b"),
        (of(lambda i: ({"a": IMAGE} if i != 5 else {"a": IMAGE, "b": i}, i % 2)), "5 of Items has b, which the first"),
        (of(lambda i: ((IMAGE, IMAGE[:, : 4 - (i == 5)]), i % 2)), "5 of Items has (3, 3, 4) torch.float32 as '1'"),
        (of(lambda i: ((IMAGE, i if i != 5 else 0.5), i % 2)), "has () torch.float32 as '1', the first () torch.int64"),
        (of(lambda i: ((IMAGE, IMAGE) if i != 5 else IMAGE, i % 2)), "5 of Items is one tensor, the first has the"),
        (of(lambda i: (IMAGE if i != 5 else (IMAGE, IMAGE), i % 2)), "has several inputs (0, 1), the first image"),
        (of(lambda i: ((IMAGE, "text"), i % 2)), "has str as '1'; inputs are float32, int64 or bool tensors"),
        (of(lambda i: ((IMAGE, None), i % 2)), "has NoneType as '1'"),
        (of(lambda i: ((IMAGE, IMAGE.byte()), i % 2)), "bytes of images by dividing and normalising them"),
        (of(lambda i: ({}, i % 2)), "has no input; return a tensor, a dict or a tuple of tensors"),
        (of(lambda i: (IMAGE, IMAGE, i % 2)), "found tuple of 3 at 0; return just these two, several inputs as one"),
        (of(lambda i: {"image": IMAGE, "label": 0}, inputs=["image", "meta"]), "has no meta among the item at 0"),
        (of(lambda i: {"image": IMAGE, "label": 0}, inputs="image"), "a list of texts, found 'image'"),
        (of(lambda i: ((IMAGE, IMAGE / (i != 5)), i % 2)), "must be finite, found values that are not in '1'"),
        (lambda: Split({"a": IMAGE[None], "b": torch.ones(2)}, torch.zeros(1, dtype=torch.int64)), "found (2,) torch"),
        (lambda: Split({"a": IMAGE[None], "b": 3}, torch.zeros(1, dtype=torch.int64)), "found int as 'b'"),
        (lambda: Split(([IMAGE, IMAGE],), torch.zeros(2, dtype=torch.int64)), "is a list of images"),
        (lambda: Split((IMAGE[None],), [0]), "labels are a torch tensor with one row per image, found list"),
    ],
)  # fmt: skip
def test_what_is_no_such_item_is_told_by_number_and_name(call, words):
    with pytest.raises(DataError, match=re.escape(words)):
        call()


def test_splits_hold_the_same_inputs_and_are_not_augmented_as_images():
    labels = torch.arange(12) % 2
    one, other = ({"a": torch.ones(12, 3, size, size), "b": labels} for size in (4, 5))
    with pytest.raises(DataError, match=re.escape("test {'a': [3, 5, 5], 'b': []}")):
        Data.from_tensors((one, labels), (other, labels))
    split = Split(one, labels)
    for option in ({"flip": True}, {"shift": 1}, {"mixup": 0.2}, {"randaugment": 3}):
        with pytest.raises(ConfigError, match="leave it out of the recipe"):
            check_mixing(Recipe(**option), split, "classification")
    with pytest.raises(DataError, match="images of several inputs are not shifted and mirrored"):
        next(split.shuffled(4, torch.Generator(), flip=True))
