"""Models by name, import path or class."""

import functools
import sys

import pytest
import torch
from torch import nn

from abcsearch.errors import ModelError
from abcsearch.models.registry import MODELS, Constructor
from abcsearch.models.resnet import SmallResNet

TINY = {"widths": [4, 6], "depths": [1, 2], "classes": 3}


class Outer:
    class Net(nn.Linear):
        pass


def takes_anything(**options):
    return nn.Linear(options["size"], 2)


def fails(size):
    raise ZeroDivisionError(size)


def not_a_network():
    return 5


def test_name_path_and_class_build_the_same_network():
    by_name = Constructor(name="small_resnet", options=TINY).build(seed=3)
    by_path = Constructor(name="abcsearch.models.resnet:SmallResNet", options=TINY).build(seed=3)
    by_class = Constructor.of(SmallResNet, TINY).build(seed=3)
    for other in (by_path, by_class):
        assert type(other) is SmallResNet
        for a, b in zip(by_name.state_dict().values(), other.state_dict().values(), strict=True):
            assert torch.equal(a, b)


def test_seed_decides_the_weights_and_the_global_state_is_left_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, same, other = (
        Constructor(name="small_resnet", options=TINY).build(seed) for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.conv.weight, same.conv.weight)
    assert torch.equal(one.linear.weight, same.linear.weight)
    assert not torch.equal(one.conv.weight, other.conv.weight)


def test_the_global_state_is_left_alone_also_when_the_constructor_raises():
    before = torch.get_rng_state()
    with pytest.raises(ModelError, match=r"fails.*size=3.*ZeroDivisionError: 3"):
        Constructor.of(fails, {"size": 3}).build()
    assert torch.equal(torch.get_rng_state(), before)


def test_a_registered_model_is_found_by_name(monkeypatch):
    monkeypatch.setitem(MODELS, "mine", takes_anything)
    assert Constructor(name="mine", options={"size": 7}).build().in_features == 7


def test_nested_attributes_are_found_by_path():
    record = Constructor.of(Outer.Net, {"in_features": 2, "out_features": 3})
    assert record.name.endswith(":Outer.Net")
    assert type(record.build()) is Outer.Net


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        (
            "smal_resnet",
            {},
            ["'smal_resnet'", "did you mean 'small_resnet'", "package.module:callable"],
        ),
        (
            "small_resnet",
            {"width": [4]},
            ["small_resnet", "option 'width'", "did you mean 'widths'"],
        ),
        (
            "small_resnet",
            {"width": [4], "dephts": [1]},
            ["did you mean 'widths'", "did you mean 'depths'"],
        ),
        (
            "torch.nn:Linear",
            {"in_feature": 1},
            ["did you mean 'in_features'", "missing: in_features, out_features"],
        ),
        ("torch.nn:Linaer", {}, ["torch.nn has no 'Linaer'", "did you mean 'torch.nn:Linear'?"]),
        ("no_such_package:Net", {}, ["no_such_package", "package.module:callable"]),
        (":Net", {}, ["':Net'", "package.module:callable"]),
        ("torch.nn:", {}, ["'torch.nn:'", "package.module:callable"]),
        (".nn:Linear", {}, ["'.nn:Linear'", "package.module:callable"]),
        ("os:sep", {}, ["'os:sep'", "not a class or function"]),
    ],
)
def test_mistakes_are_found_without_building(name, options, words):
    with pytest.raises(ModelError) as caught:
        Constructor(name=name, options=options).check()
    for word in words:
        assert word in str(caught.value)


def test_a_module_that_fails_when_imported_is_a_model_error(tmp_path, monkeypatch):
    (tmp_path / "broken_module_of_mine.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModelError, match=r"broken_module_of_mine:Net.*ZeroDivisionError"):
        Constructor(name="broken_module_of_mine:Net").build()
    assert "broken_module_of_mine" not in sys.modules


def test_something_else_than_a_module_is_refused():
    with pytest.raises(
        ModelError, match=r"not_a_network.*returned int, expected a torch\.nn\.Module"
    ):
        Constructor.of(not_a_network, {}).build()


@pytest.mark.parametrize("target", [lambda: nn.Linear(1, 1), functools.partial(nn.Linear, 1)])
def test_what_has_no_name_to_import_it_by_is_refused(target):
    with pytest.raises(ModelError, match="cannot be imported by name"):
        Constructor.of(target, {})
