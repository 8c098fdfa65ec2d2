"""Data of one's own by import path: `Data`, or two Datasets of PyTorch."""

import dataclasses

import pytest
import torch
from torch.utils.data import DataLoader, Subset, TensorDataset

from abcsearch.config import parse_config
from abcsearch.data.registry import check_data_options, load_data, takes_seed
from abcsearch.data.split import Split
from abcsearch.data.splits import Data
from abcsearch.data.stream import Stream
from abcsearch.data.user_data import from_datasets
from abcsearch.errors import ConfigError, DataError

MODULE = """
import torch
from torch.utils.data import TensorDataset
from abcsearch import Data

def images(count):
    return torch.arange(float(count))[:, None, None, None], torch.arange(count) % 2

def split(*, size=20):
    return Data.from_tensors(images(size), images(4), validation=0.5)

def pair(*, size=20):
    return TensorDataset(*images(size)), TensorDataset(*images(4))

def seeded(*, seed=7, size=20):
    return Data.from_tensors(images(size), images(4), seed=seed, validation=0.5)

def fails():
    raise ZeroDivisionError("oh")

def other():
    return [1]

class Holder:
    pair = staticmethod(pair)

value = 5
"""


@pytest.fixture(autouse=True)
def _module(tmp_path, monkeypatch):
    (tmp_path / "ownimages.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "ownimages", raising=False)


def numbers(split):
    return set(split.loaded().images.flatten().int().tolist())


def test_a_function_that_returns_data_is_called_with_its_options():
    data = load_data("ownimages:split", size=10)
    assert (len(data.train), len(data.validation)) == (5, 5)
    assert load_data("ownimages:seeded", seed=3).seed == 3
    assert load_data("ownimages:split", seed=3).seed == 0  # the run's seed is offered to all
    assert takes_seed("ownimages:split")


def test_two_datasets_are_read_and_split_by_the_options():
    options = {"validation": 0.25, "seed": 1, "size": 40}
    data = load_data("ownimages:pair", **options)
    assert isinstance(data.train, Split)
    assert (len(data.train), len(data.validation), len(data.test)) == (30, 10, 4)
    assert numbers(data.train) | numbers(data.validation) == set(range(40))
    for split in (data.train, data.validation, data.test):
        assert torch.equal(split.labels, split.images.flatten().long() % 2)
    streamed = load_data("ownimages:Holder.pair", **options, stream=True, workers=0)
    assert isinstance(streamed.train, Stream)
    assert numbers(streamed.train) == numbers(data.train)
    assert torch.equal(streamed.train.labels, data.train.labels)
    assert (
        streamed.fingerprint() == load_data("ownimages:pair", **options, stream=True).fingerprint()
    )
    assert load_data("ownimages:pair", **{**options, "seed": 2}).fingerprint() != data.fingerprint()


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (["cat", "dog"], ("cat", "dog")),
        ([("tench", "Tinca tinca"), ("goldfish",)], ("tench", "goldfish")),
        (("cat", "dog", "fish"), ("cat", "dog", "fish")),  # of which no image is a fish
        (["cat"], ()),
        ([1, 2], ()),
        ("ab", ()),
        (2, ()),
    ],
)
def test_names_of_classes_are_those_of_the_training_dataset_where_they_can_be(given, names):
    images = torch.arange(20.0)[:, None, None, None], torch.arange(20) % 2
    train, test = TensorDataset(*images), TensorDataset(*images)
    train.classes = given
    within = DataLoader(Subset(train, range(20)))
    made = [from_datasets((train, test)), Data.of(train, test), Data.of(within, test)]
    made.append(from_datasets((train, test), stream=True, workers=0))
    assert [data.class_names for data in made] == [names] * 4
    for data in made:  # runs of before go on
        assert dataclasses.replace(data, class_names=()).fingerprint() == data.fingerprint()
    assert Data.of(images, images).class_names == ()


@pytest.mark.parametrize("given", [["cat"], "ab", [1, 2], None])
def test_names_that_are_none_of_all_classes_are_refused(given):
    images = torch.zeros(20, 1, 4, 4), torch.arange(20) % 2
    with pytest.raises(DataError, match="class_names are texts, one for each class"):
        dataclasses.replace(Data.from_tensors(images, images), class_names=given)


def test_labels_of_a_stream_are_those_of_the_attribute_targets():
    class Named(TensorDataset):
        targets = (0, 1) * 10

    pair = [Named(torch.rand(20, 3, 4, 4)) for _ in range(2)]  # items without labels
    data = from_datasets(pair, validation=0.5, stream=True, workers=0)
    assert data.test.labels.tolist() == list(Named.targets)


@pytest.mark.parametrize(
    ("labels", "objective", "dtype"),
    [
        (torch.rand(20), "regression", torch.float32),
        (torch.rand(20, 3).double(), "regression", torch.float32),
        (torch.zeros(20, 4, 4).byte(), "segmentation", torch.int64),
    ],
)
def test_labels_are_what_the_objective_needs(labels, objective, dtype):
    pair = (TensorDataset(torch.rand(20, 1, 4, 4), labels),) * 2
    data = from_datasets(pair, objective=objective)
    assert data.objective == objective
    assert data.test.labels.dtype == dtype
    assert torch.equal(data.test.labels, labels.to(dtype))


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        (
            "ownimages:gone",
            {},
            "data set 'ownimages:gone' cannot be imported: ownimages has no 'gone'",
        ),
        ("nomodule:pair", {}, "cannot be imported: there is no module nomodule"),
        ("ownimages:value", {}, "is not a class or function but 5"),
        ("ownimages:pair", {"siz": 5}, "did you mean 'size'?"),
        (
            "ownimages:split",
            {"validation": 0.1, "stream": True},
            "split already: it has no option stream, validation",
        ),
        ("ownimages:fails", {}, "cannot be loaded with no options: ZeroDivisionError: oh"),
        (
            "ownimages:other",
            {},
            "returned list, expected abcsearch.Data (see Data.from_tensors) or two Datasets",
        ),
        ("ownimages:pair", {"validation": 2.0}, "found 2.0"),
        ("mydata", {}, "your own is named by import path, package.module:callable"),
    ],
)
def test_mistakes_are_named(name, options, words):
    with pytest.raises(DataError) as caught:
        load_data(name, **options)
    assert words in str(caught.value)


class Items:
    def __init__(self, *items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


IMAGE = torch.zeros(3, 4, 4)


@pytest.mark.parametrize(
    ("items", "words"),
    [
        ([], "mine: the train Dataset has __getitem__, __len__ and at least one item"),
        (
            [(IMAGE, 0), IMAGE],
            "cannot be read: mine: the train Dataset has items (image, label), found Tensor at 1",
        ),
        (
            [(IMAGE, 0), (IMAGE, "cat")],
            "mine: the train Dataset has labels that are numbers or tensors of one shape",
        ),
        (
            [(IMAGE, 0), (IMAGE, torch.zeros(2))],
            "mine: the train Dataset has labels that are numbers or tensors",
        ),
        ([(IMAGE, 0), (IMAGE.long(), 1)], "found (3, 4, 4) torch.int64"),
        ([(IMAGE, 0), (IMAGE[:1], 1)], "is (1, 4, 4), the first is (3, 4, 4)"),
        ([(IMAGE, 0), (IMAGE, -1)], "labels count classes from 0, found -1"),
        ([(IMAGE, 0), (IMAGE / 0, 1)], "not in 1 of 2 images, first in number 1 (from 0)"),
    ],
)
def test_items_that_do_not_fit_are_named(items, words):
    with pytest.raises(DataError) as caught:
        from_datasets((Items(*items), Items((IMAGE, 0))), name="mine", validation=0.5)
    assert words in str(caught.value)


def test_a_config_names_data_by_import_path_and_has_its_mistakes_at_once():
    plain = {
        "n_trials": 1,
        "budget": {"macs": 0.5},
        "model": "small_resnet",
        "pretrain": {"epochs": 1},
    }
    config = parse_config(
        {**plain, "data": {"name": "ownimages:pair", "size": 30, "validation": 10}}
    )
    assert config.data.options == {"size": 30, "validation": 10}
    with pytest.raises(
        ConfigError, match=r"2 mistake\(s\)(.|\n)*'trials'(.|\n)*did you mean 'size'"
    ):
        parse_config({**plain, "trials": 3, "data": {"name": "ownimages:pair", "siz": 30}})
    check_data_options("ownimages:pair", {"workers": 0})
    with pytest.raises(DataError, match="unknown option 'workers'"):
        check_data_options("digits", {"workers": 0})
