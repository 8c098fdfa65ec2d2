"""The networks that we bring: sizes as published, shapes, refusals, and what analysis needs of them."""

import inspect
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.utils.flop_counter import FlopCounterMode

from abcsearch.channels.groups import UnsupportedOpWarning, trace_channels
from abcsearch.channels.ranking import rank_channels
from abcsearch.channels.slicing import slice_model
from abcsearch.errors import ModelError
from abcsearch.models.registry import MODELS, Constructor
from abcsearch.models.resnet import PadShortcut, SmallResNet

# (name, options, image size): parameters, MACs. MACs are those that the papers and model zoos state, here to the last
# digit; so are the parameters of ResNets, MobileNets and ShuffleNetV2.
SIZES = {
    ("resnet20", "pad"): (269_722, 40_551_040),
    ("resnet20", "projection"): (272_474, 40_813_184),
    ("resnet32", "pad"): (464_154, 68_862_592),
    ("resnet44", "pad"): (658_586, 97_174_144),
    ("resnet56", "pad"): (853_018, 125_485_696),
    ("resnet56", "projection"): (855_770, 125_747_840),
    ("resnet110", "pad"): (1_727_962, 252_887_680),
    ("vgg16_cifar", None): (14_724_042, 313_201_664),
    ("googlenet_cifar", None): (6_158_346, 1_521_756_160),
    ("densenet40", None): (1_059_298, 282_917_328),
    ("mobilenet_v1", None): (4_231_976, 568_740_352),
    ("mobilenet_v1_cifar", None): (3_217_226, 46_354_432),
    ("mobilenet_v2_cifar", None): (2_236_682, 87_976_448),
    ("shufflenet_v2_x0_5_cifar", None): (352_042, 10_902_016),
}
# That return other than logits of images
OURS = sorted(set(MODELS) - {"tiny_ssd", "small_edsr", "small_fcn"})


def counted(model, size):
    """Returns parameters, and MACs of convolutions and linear layers for one image (nothing is computed)."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.empty(1, 3, size, size, device="meta"))
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2


@pytest.mark.parametrize(("name", "shortcut"), SIZES, ids=lambda value: str(value or ""))
def test_parameters_and_macs_are_those_published(name, shortcut):
    with torch.device("meta"):
        model = MODELS[name](**({"shortcut": shortcut} if shortcut else {}))
    assert counted(model, 224 if name == "mobilenet_v1" else 32) == SIZES[name, shortcut]


@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110])
@pytest.mark.parametrize("shortcut", ["pad", "projection"])
def test_resnets_have_the_layers_of_their_name(depth, shortcut):
    with torch.device("meta"):
        network = MODELS[f"resnet{depth}"](shortcut=shortcut)
    layers = [
        n
        for n, m in network.named_modules()
        if isinstance(m, nn.Conv2d | nn.Linear) and "shortcut" not in n
    ]
    assert len(layers) == depth


@pytest.mark.parametrize("name", OURS)
def test_logits_of_any_images_and_classes(name):
    model = Constructor(name=name, options={"classes": 7, "in_channels": 2}).build().eval()
    for batch, height, width in ((2, 32, 32), (1, 48, 32)):
        assert model(torch.rand(batch, 2, height, width)).shape == (batch, 7)


@pytest.mark.parametrize("name", OURS)
def test_images_and_weights_decide_the_logits(name):
    # Zeroed or disconnected parts would show as logits or gradients that do not move.
    model = Constructor(name=name, options={"in_channels": 3, "classes": 5}).build().train()
    logits = model(torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    assert logits.std(dim=0).min() > 1e-3
    logits.logsumexp(dim=1).sum().backward()
    without = [
        n
        for n, p in model.named_parameters()
        if p.grad is None or (p.ndim > 1 and p.grad.abs().max() == 0)
    ]
    assert without == []


@pytest.mark.parametrize("name", OURS)
def test_convolutions_start_with_the_spread_that_keeps_gradients(name):
    model = Constructor(name=name).build()
    for path, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 4000:
            fan_out = module.weight[:, 0].numel()
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1), path


@pytest.mark.parametrize("name", OURS)
def test_the_graph_gives_the_same_logits(name):
    model = Constructor(name=name, options={"in_channels": 3}).build().eval()
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(fx.symbolic_trace(model)(images), model(images))


@pytest.mark.parametrize(
    "name", ["small_resnet", "resnet20", "vgg16_cifar", "shufflenet_v2_x0_5_cifar", "densenet40"]
)
def test_sliced_networks_run(name):
    # Whatever of them can be pruned today: no number of channels is written into forward.
    model = Constructor(name=name, options={"in_channels": 3}).build().eval()
    example = torch.rand(1, 3, 32, 32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnsupportedOpWarning)
        graph = trace_channels(model, example)
    candidate = [max(1, group.channels // 2) for group in graph.prunable]
    smaller = slice_model(model, graph, candidate, rank_channels(model, graph))
    found = sum(p.numel() for p in smaller.parameters())
    assert found == graph.costs.params([candidate])[0] < sum(p.numel() for p in model.parameters())
    assert smaller(torch.rand(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("name", [name for name in OURS if "resnet" not in name])
@pytest.mark.parametrize(
    ("option", "value"), [("classes", 0), ("in_channels", -1), ("classes", "10"), ("classes", 1.5)]
)
def test_sizes_that_are_no_counts_are_refused(name, option, value):
    with pytest.raises(
        ModelError, match=rf"classes.*whole numbers, at least 1; found {option}={value!r}; set"
    ):
        MODELS[name](**{option: value})


@pytest.mark.parametrize("depth", [6, 39, 41])
def test_densenet_refuses_depths_that_do_not_fit_its_blocks(depth):
    with pytest.raises(
        ModelError, match=rf"4 more than a multiple of 3.*found {depth}; the nearest is (7|37|40)"
    ):
        MODELS["densenet40"](depth=depth)


@pytest.mark.parametrize(
    "options",
    [
        {"widths": [4], "depths": [1, 1]},
        {"widths": [], "depths": []},
        {"classes": 0},
        {"widths": [4, 0, 4]},
    ],
)
def test_small_resnet_refuses_impossible_sizes(options):
    with pytest.raises(ModelError, match=r"one width and one depth per stage.*widths=\["):
        Constructor(name="small_resnet", options=options).build()


def test_resnets_refuse_shortcuts_that_cannot_be():
    with pytest.raises(ModelError, match="unknown shortcut 'pads'; did you mean 'pad'"):
        MODELS["resnet20"](shortcut="pads")
    with pytest.raises(
        ModelError, match=r"widths must not shrink, found \[8, 4\]; use 'projection'"
    ):
        SmallResNet(widths=[8, 4], depths=[1, 1], shortcut="pad")
    assert SmallResNet(widths=[8, 4], depths=[1, 1])(torch.rand(1, 1, 8, 8)).shape == (1, 10)


def test_every_option_has_a_default():
    for name, make in MODELS.items():
        assert all(p.default is not p.empty for p in inspect.signature(make).parameters.values()), (
            name
        )


@pytest.mark.parametrize("shortcut", ["pad", "projection"])
def test_small_resnet_halves_the_image_in_every_stage_but_the_first(shortcut):
    network = SmallResNet(
        in_channels=2, classes=5, widths=(3, 4, 7), depths=(1, 2, 1), shortcut=shortcut
    ).eval()
    sizes = []
    for stage in network.stages:
        stage.register_forward_hook(
            lambda _module, _inputs, output: sizes.append(tuple(output.shape))
        )
    assert network(torch.rand(2, 2, 12, 8)).shape == (2, 5)
    assert sizes == [(2, 3, 12, 8), (2, 4, 6, 4), (2, 7, 3, 2)]
    assert [len(stage) for stage in network.stages] == [1, 2, 1]


@pytest.mark.parametrize(("narrow", "wide"), [(16, 32), (32, 64), (3, 4), (4, 4)])
def test_padded_shortcuts_are_every_other_place_between_zeros(narrow, wide):
    x = torch.rand(2, narrow, 6, 5)
    out = PadShortcut(narrow, wide, 2)(x)
    first = (wide - narrow) // 2
    assert out.shape == (2, wide, 3, 3)
    assert torch.equal(out[:, first : first + narrow], x[:, :, ::2, ::2])
    assert out.count_nonzero() == x[:, :, ::2, ::2].count_nonzero()
    if wide == 2 * narrow:  # option A as public CIFAR checkpoints were trained with it
        assert torch.equal(out, F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, wide // 4, wide // 4)))


def test_padded_shortcuts_follow_their_padding():
    shortcut = PadShortcut(4, 8, 2)
    shortcut.pad.padding = (0, 0, 0, 0, 1, 0)
    x = torch.rand(1, 3, 4, 4)
    assert torch.equal(shortcut(x), torch.cat([torch.zeros(1, 1, 2, 2), x[:, :, ::2, ::2]], dim=1))


def test_padded_shortcuts_have_no_weights_and_no_channels_of_their_own():
    assert list(PadShortcut(4, 8, 2).state_dict()) == []
    with torch.device("meta"):
        plain, padded = (
            SmallResNet(shortcut=shortcut).state_dict() for shortcut in ("projection", "pad")
        )
    assert [name for name in plain if "shortcut" not in name] == list(padded)
