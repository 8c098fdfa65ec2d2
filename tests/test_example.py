"""A batch of several inputs is cut, repeated, moved and fed as a tensor is: each tensor by its own rows."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from abcsearch.example import Example, described, laid, repeated, run_on, sizes_of

Pair = namedtuple("Pair", "left right")


@dataclass(frozen=True)
class Record:
    first: object
    second: object


def trees(rows):
    """Nested arguments whose every tensor has the rows, or has none, and all of these are different."""
    counter = iter(range(1, 10**6))
    # A list of tensors of three axes would be a list of images
    shape = st.sampled_from([(), (3,), (2,), (2, 3, 3)])
    leaf = shape.map(
        lambda own: (
            next(counter) * 1000.0 + torch.arange(rows).view(-1, *[1] * len(own)).expand(-1, *own)
        )
    )
    plain = st.sampled_from([None, 3, "text", torch.tensor(7.0)])

    def nested(inner):
        pairs = st.tuples(inner, inner)
        texts = st.dictionaries(st.sampled_from("abc"), inner, min_size=1)
        return st.one_of(
            pairs,
            pairs.map(list),
            pairs.map(lambda x: Pair(*x)),
            pairs.map(lambda x: Record(*x)),
            texts,
            texts.map(OrderedDict),
        )

    return st.recursive(st.one_of(leaf, leaf, plain), nested, max_leaves=6)


@settings(max_examples=30)
@given(st.data(), st.integers(1, 9), st.integers(1, 4))
def test_every_tensor_is_cut_and_repeated_by_its_rows(data, rows, size):
    # With the most axes
    image = torch.arange(rows).view(-1, 1, 1, 1, 1).float().expand(-1, 1, 2, 2, 2)
    example = Example((image, data.draw(trees(rows))), {"more": data.draw(trees(rows))})
    assert len(example) == rows
    tensors = [x for x in example.tensors if x.ndim]

    parts = example.split(size)
    assert [len(part) for part in parts] == [len(part) for part in image.split(size)]
    for number, whole in enumerate(tensors):
        mine = [[x for x in part.tensors if x.ndim][number] for part in parts]
        assert torch.equal(torch.cat(mine), whole)
        again = [x for x in example.repeated(2 * rows + 1).tensors if x.ndim][number]
        assert torch.equal(again, torch.cat([whole] * 3)[: 2 * rows + 1])
    chosen = torch.tensor([rows - 1, 0])
    for x, whole in zip([x for x in example[chosen].tensors if x.ndim], tensors, strict=True):
        assert torch.equal(x, whole[chosen])
    assert [type(x) for x in example[:1].leaves] == [type(x) for x in example.leaves]
    assert list(example[:1].entries) == list(example.entries)
    copied = example.clone()
    assert all(
        x is not y and torch.equal(x, y)
        for x, y in zip(copied.tensors, example.tensors, strict=True)
    )


def test_what_all_images_share_stays_whole_and_lists_of_images_are_batches():
    shared = Example((torch.zeros(4, 3, 5, 5), torch.arange(7.0)))
    assert [x.shape for x in shared[:1].tensors] == [(1, 3, 5, 5), (7,)]
    listed = Example(([torch.zeros(3, 5, 5), torch.ones(3, 4, 6)],))
    assert (len(listed), len(listed[:1].tensors), len(listed.repeated(5).tensors)) == (2, 1, 5)
    assert listed[:1].tensors[0].shape == (3, 5, 5)


class Takes(nn.Module):
    """Returns what it was called with."""


class Keywords(Takes):
    def forward(self, image, *, meta=None):
        return {"image": image, "meta": meta}


class OneDict(Takes):
    def forward(self, batch):
        return batch


class Anything(Takes):
    def forward(self, *args, **kwargs):
        return args, kwargs


def test_a_dict_is_keyword_arguments_or_the_only_one_as_forward_takes_it():
    both = {"image": torch.ones(2, 1), "meta": torch.zeros(2, 3)}
    for network in (Keywords(), OneDict()):
        found = run_on(network, Example.of(both))
        assert found == both
    assert run_on(Anything(), Example.of(both)) == ((), both)
    assert run_on(OneDict(), Example((both,))) == both
    assert run_on(Keywords(), Example.of((both["image"],)))["image"] is both["image"]
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        run_on(Keywords(), Example.of({"image": 1, "other": 2}))


def test_shapes_and_words_name_every_input():
    both = Example((torch.zeros(2, 3, 4, 4),), {"more": {"a": torch.zeros(2, dtype=torch.int64)}})
    assert sizes_of(both) == {"0": [3, 4, 4], "more.a": []}
    assert sizes_of(both.tensors[0]) == [3, 4, 4]
    assert described(both) == "0 (2, 3, 4, 4) torch.float32 on cpu, more.a (2,) torch.int64 on cpu"
    assert laid(both).tensors[0].is_contiguous(memory_format=torch.channels_last)
    assert repeated(both, 5).tensors[1].shape == (5,)
    assert repeated(both.tensors[0], 5).shape == (5, 3, 4, 4)
