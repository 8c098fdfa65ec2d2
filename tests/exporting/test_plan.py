"""Exports: a pruned network as files, and the very same network back."""

import copy
import json
import shutil

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import load_file
from torch import nn

from abcsearch.channels.groups import trace_channels
from abcsearch.channels.ranking import rank_channels
from abcsearch.channels.slicing import slice_model
from abcsearch.data.split import Split
from abcsearch.errors import ExportError, ModelError
from abcsearch.exporting import export, load
from abcsearch.models.resnet import SmallResNet
from abcsearch.training.loop import train
from abcsearch.training.recipe import Recipe
from tests.records import rewrite

# What fixes channels is the business of other tests.
pytestmark = pytest.mark.filterwarnings("ignore::abcsearch.channels.groups.UnsupportedOpWarning")


class Depthwise(nn.Module):
    """Depthwise and pointwise convolutions, PReLU, a tied pair, a frozen weight and a buffer that is not saved."""

    def __init__(self, width=8, kernel=3):
        super().__init__()
        self.stem = nn.Conv2d(3, width, kernel, padding=1)
        self.act = nn.PReLU(width)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.bn = nn.BatchNorm2d(width)
        self.point = nn.Conv2d(width, 2 * width, 1)
        self.left = nn.Conv2d(2 * width, 5, 1, bias=False)
        self.right = nn.Conv2d(2 * width, 5, 1)
        self.right.weight = self.left.weight
        self.stem.weight.requires_grad = False
        self.register_buffer("scale", torch.ones(5), persistent=False)

    def forward(self, x):
        x = self.bn(self.depthwise(self.act(self.stem(x))))
        x = self.point(x)
        return (self.left(x) + self.right(torch.relu(x))).mean(dim=(2, 3)) * self.scale


class Flat(nn.Module):
    """A convolution whose channels are flattened into a linear layer; tied linear layers."""

    def __init__(self, sizes=(6, 7)):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, sizes[0], 3, stride=2), nn.BatchNorm2d(sizes[0], affine=False), nn.ReLU()
        )
        self.first = nn.Linear(49 * sizes[0], sizes[1])
        self.again = nn.Linear(sizes[1], sizes[1])
        self.twice = self.again
        self.last = nn.Linear(sizes[1], 4)

    def forward(self, x):
        x = torch.relu(self.first(self.features(x).flatten(1)))
        return self.last(self.twice(torch.relu(self.again(x))))


def mobilenet(width=0.25):
    return torchvision.models.mobilenet_v2(num_classes=5, width_mult=width)


def vgg(dropout=0.5):
    """VGG's features, normalised, at an eighth of their width."""
    plan = [8, "M", 16, "M", 32, 32, "M", 64, 64, "M"]
    features = torchvision.models.vgg.make_layers(plan, batch_norm=True)
    return nn.Sequential(
        features, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(dropout), nn.Linear(4 * 64, 5)
    )


NETWORKS = {
    "small_resnet": (
        SmallResNet,
        {"in_channels": 3, "classes": 4, "widths": [6, 10], "depths": [1, 2]},
    ),
    "depthwise": (Depthwise, {"width": 6}),
    "flat": (Flat, {}),
    "mobilenet_v2": (mobilenet, {"width": 0.2}),
    "vgg": (vgg, {}),
}


def built(name):
    make, options = NETWORKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = make(**options)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-0.5, 0.5)
                module.running_var.uniform_(0.5, 2)
            if isinstance(module, Depthwise):
                module.scale.uniform_(0.5, 2)
    return network.eval()


def example(n=2):
    return torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def sliced(network, seed, *, alpha=0.9):
    graph = trace_channels(network, example())
    candidate = graph.space(alpha=alpha, step=0.1).sample(np.random.default_rng(seed))
    return slice_model(network, graph, candidate, rank_channels(network, graph))


def assert_same(one, other):
    assert type(one) is type(other)
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    for (name, a), (again, b) in pairs:
        assert name == again
        assert (a.dtype, a.shape, a.stride()) == (b.dtype, b.shape, b.stride()), name
        assert torch.equal(a, b), name
    assert {n: p.requires_grad for n, p in one.named_parameters()} == {
        n: p.requires_grad for n, p in other.named_parameters()
    }
    for (path, a), (_, b) in zip(one.named_modules(), other.named_modules(), strict=True):
        assert repr(a) == repr(b), path
    for size in (1, 5):
        images = example(size).to(next(one.parameters()).dtype)
        for batch in (images, images.contiguous(memory_format=torch.channels_last)):
            with torch.inference_mode():
                assert torch.equal(one.eval()(batch), other(batch))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_sliced_network_comes_back_bit_for_bit(tmp_path, name, seed):
    make, options = NETWORKS[name]
    network = sliced(built(name), seed)
    assert (
        export(network, tmp_path, example_input=example(), constructor=make, options=options).path
        == tmp_path
    )
    found = load(tmp_path)
    assert_same(network, found)
    assert not any(module.training for module in found.modules())
    assert sum(p.numel() for p in found.parameters()) < sum(
        p.numel() for p in make(**options).parameters()
    )


@pytest.mark.parametrize("name", ["small_resnet", "depthwise", "mobilenet_v2"])
@pytest.mark.parametrize("change", ["all", "before", "one", "half"])
def test_memory_layout_and_precision_come_back(tmp_path, name, change):
    make, options = NETWORKS[name]
    network = built(name)
    if change == "before":  # sliced layers lose the layout, the others keep it
        network = sliced(network.to(memory_format=torch.channels_last), 3, alpha=1.0)
    else:
        network = sliced(network, 3)
    if change == "all":
        network.to(memory_format=torch.channels_last)
    elif change == "one":
        last = [m for m in network.modules() if isinstance(m, nn.Conv2d)][-1]
        last.to(memory_format=torch.channels_last)
    elif change == "half":
        network.half()
    images = example().half() if change == "half" else example()
    export(network, tmp_path, example_input=images, constructor=make, options=options)
    assert_same(network, load(tmp_path))


@pytest.mark.parametrize("name", ["small_resnet", "depthwise"])
def test_a_fine_tuned_network_comes_back_and_can_be_pruned_and_exported_again(tmp_path, name):
    make, options = NETWORKS[name]
    network = sliced(built(name), 0)
    split = Split(example(32), torch.arange(32) % 4)
    train(network, split, Recipe(epochs=1, batch_size=16), seed=0, stream="finetune")
    export(network, tmp_path / "a", example_input=example(), constructor=make, options=options)
    found = load(tmp_path / "a")
    assert_same(network, found)
    smaller = sliced(found, 1, alpha=0.5)
    assert_same(smaller, sliced(network, 1, alpha=0.5))
    export(smaller, tmp_path / "b", example_input=example(), constructor=make, options=options)
    again = load(tmp_path / "b")
    assert_same(smaller, again)
    train(again, split, Recipe(epochs=1, batch_size=16), seed=0, stream="finetune")


def test_tied_weights_are_tied_again(tmp_path):
    for name, pair in (
        ("depthwise", ("left.weight", "right.weight")),
        ("flat", ("again.weight", "twice.weight")),
    ):
        make, options = NETWORKS[name]
        export(
            sliced(built(name), 0),
            tmp_path / name,
            example_input=example(),
            constructor=make,
            options=options,
        )
        found = load(tmp_path / name)
        one, other = (found.get_parameter(path) for path in pair)
        assert one is other
        assert isinstance(one, nn.Parameter)


def test_the_network_and_the_random_state_are_left_alone(tmp_path):
    network = built("small_resnet")
    network.train()
    network.bn.eval()
    before, state = copy.deepcopy(network), torch.get_rng_state()
    make, options = NETWORKS["small_resnet"]
    export(network, tmp_path, example_input=example(), constructor=make, options=options)
    load(tmp_path)
    load(tmp_path, constructor=lambda widths, **others: make(widths=tuple(widths), **others))
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in network.modules()] == [m.training for m in before.modules()]
    assert all(
        torch.equal(a, b)
        for a, b in zip(network.state_dict().values(), before.state_dict().values(), strict=True)
    )


def test_nothing_is_pickled_and_the_plan_says_what_it_is(tmp_path):
    make, options = NETWORKS["small_resnet"]
    network = sliced(built("small_resnet"), 0)
    info = {"candidate": [1, 2], "note": "ä"}
    export(
        network,
        tmp_path / "x",
        example_input=example(),
        constructor=make,
        options=options,
        info=info,
    )
    assert sorted(path.name for path in (tmp_path / "x").iterdir()) == [
        "model.safetensors",
        "plan.json",
    ]
    plan = json.loads((tmp_path / "x" / "plan.json").read_text(encoding="utf-8"))
    assert plan["constructor"] == {
        "name": "abcsearch.models.resnet:SmallResNet",
        "options": options,
    }
    assert (plan["info"], plan["input_shape"]) == (info, [2, 3, 16, 16])
    assert load_file(tmp_path / "x" / "model.safetensors").keys() == network.state_dict().keys()
    # The class of the network and the name of a registered one are constructors as well.
    one = export(SmallResNet(), tmp_path / "y", example_input=torch.rand(1, 1, 8, 8))
    two = export(
        SmallResNet(),
        tmp_path / "z",
        example_input=torch.rand(1, 1, 8, 8),
        constructor="small_resnet",
    )
    assert type(load(one)) is type(load(two)) is SmallResNet


@pytest.fixture
def exported(tmp_path):
    make, options = NETWORKS["depthwise"]
    return export(
        sliced(built("depthwise"), 0),
        tmp_path / "x",
        example_input=example(),
        constructor=make,
        options=options,
    ).path


def edit(folder, change):
    rewrite(folder / "plan.json", change)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (shutil.rmtree, "x does not exist; write one with: abcsearch export"),
        (
            lambda f: (f / "plan.json").unlink(),
            "plan.json is missing; write one with: abcsearch export",
        ),
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda f: (f / "plan.json").write_text("{"), "is damaged"),
        (lambda f: (f / "plan.json").write_text("[]"), "is damaged"),
        (lambda f: (f / "plan.json").write_bytes(b"\xff"), "is damaged"),
        (lambda f: (f / "model.safetensors").write_bytes(b""), "is damaged"),
        (
            lambda f: (f / "model.safetensors").write_bytes(
                (f / "model.safetensors").read_bytes()[:-9]
            ),
            "is damaged",
        ),
        (lambda f: edit(f, lambda plan: plan.pop("layers")), "is damaged.*layers"),
        (lambda f: edit(f, lambda plan: plan.pop("format")), "is damaged.*format"),
        (lambda f: edit(f, lambda plan: plan.update(layers=5)), "is damaged"),
        (
            lambda f: edit(f, lambda plan: plan.update(constructor={"name": "x"})),
            "is damaged.*options",
        ),
        (
            lambda f: edit(f, lambda plan: plan.update(format=2)),
            "has format 2, this version reads up to 1; update",
        ),
        (
            lambda f: edit(f, lambda plan: plan["layers"].update(gone={"groups": 1})),
            "has it changed. gone is missing",
        ),
        (
            lambda f: edit(f, lambda plan: plan["constructor"]["options"].update(width=7)),
            r"has it changed. stem.weight",
        ),
        (
            lambda f: edit(f, lambda plan: plan["constructor"]["options"].update(kernel=5)),
            r"stem.weight has shape \(6, 3, 5",
        ),
    ],
)
def test_damaged_and_changed_exports_are_one_clear_error(exported, spoil, words):
    spoil(exported)
    with pytest.raises(ExportError, match=words) as caught:
        load(exported)
    assert str(exported) in str(caught.value)


def wrong_layer(**values):
    return lambda plan: plan["layers"]["point"].update(values)


def wrong_stride(value):
    return lambda plan: plan["strides"].update({"point.weight": value})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda plan: plan.update(dropped=5), "dropped is 5"),
        (lambda plan: plan.update(dropped=None), "dropped is None"),
        (lambda plan: plan.update(dropped=[""]), "dropped holds ''"),
        (lambda plan: plan.update(dropped=[3]), "dropped holds 3"),
        (lambda plan: plan.update(dropped=["stem", "stem.x"]), "dropped holds 'stem.x'"),
        (lambda plan: plan["layers"].update(stem=5), "layers: stem is 5"),
        (wrong_layer(out_channels="x"), "point.out_channels is 'x'"),
        (wrong_layer(out_channels=True), "point.out_channels is True"),
        (wrong_layer(out_channels=[1, "x"]), "point.out_channels is"),
        (wrong_layer(out_channels=99), "point.out_channels is 99, its weight of shape"),
        (wrong_layer(in_channels=-1), "point.in_channels is -1, its weight of shape"),
        (wrong_layer(groups=2), "point.in_channels is .* its weight of shape"),
        (wrong_stride([1, 1]), r"strides: point.weight is \[1, 1\]"),
        (wrong_stride([0, 0, 0, 0]), "strides: point.weight is"),
        (wrong_stride([-1, 1, 1, 1]), "strides: point.weight is"),
        (wrong_stride("1111"), "strides: point.weight is '1111'"),
        (wrong_stride([1, "1", 1, 1]), "strides: point.weight is"),
        (wrong_stride([10**12, 1, 1, 1]), "strides: point.weight is"),
        (wrong_stride([1, 1, 10**30, 1]), "strides: point.weight is"),
        (
            lambda plan: plan["strides"].update(gone=[1]),
            "strides: gone is not in model.safetensors",
        ),
        (
            lambda plan: plan["tensors"].update({"point.weight": [1, "x"]}),
            "tensors: point.weight is",
        ),
        (lambda plan: plan["constructor"].update(name=5), "constructor.name is 5"),
        (lambda plan: plan["constructor"].update(options=[1]), r"constructor.options is \[1\]"),
        (lambda plan: plan.update(info=5), "info is 5"),
        (lambda plan: plan.update(input_shape="x"), "input_shape is 'x'"),
        (lambda plan: plan.update(format=0), "format is 0"),
        (lambda plan: plan.update(format=True), "format is True"),
        (lambda plan: plan.update(format="1"), "format is '1'"),
    ],
)
def test_a_plan_with_wrong_values_is_damaged(exported, change, words):
    load(exported)
    edit(exported, change)
    with pytest.raises(ExportError, match=f"is damaged: .*{words}.*write it again") as caught:
        load(exported)
    assert str(exported) in str(caught.value)


def test_any_damage_to_the_plan_is_an_error_of_ours(exported):
    text = (exported / "plan.json").read_bytes()
    draws = np.random.default_rng(0)
    for at in draws.integers(0, len(text), 150):
        (exported / "plan.json").write_bytes(
            text[:at] + bytes([text[at] ^ int(draws.integers(1, 128))]) + text[at + 1 :]
        )
        try:
            load(exported)
        except (ExportError, ModelError):
            continue


def test_of_an_export_that_is_not_there_the_nearest_one_is_named(exported, tmp_path):
    (tmp_path / "digits.onnx").write_text("")
    (tmp_path / "digit.txt").write_text("")
    exported.rename(tmp_path / "pruned")
    for asked, meant in (
        ("digit.onnx", "digits.onnx"),
        ("digits.onx", "digits.onnx"),
        ("prune", "pruned"),
    ):
        with pytest.raises(
            ExportError, match=rf"{asked} does not exist; did you mean '.*/{meant}'\?"
        ):
            load(tmp_path / asked)
    with pytest.raises(ExportError, match="nothing does not exist; write one with"):
        load(tmp_path / "nowhere" / "nothing")


class Other(Depthwise):
    def __init__(self, width=8):
        super().__init__(width)
        self.more = nn.Linear(2, 2)


def fails(**_options):
    raise ZeroDivisionError


@pytest.mark.parametrize(
    ("constructor", "error", "words"),
    [
        (Other, ExportError, "has it changed.*more.weight is new"),
        (SmallResNet, ModelError, "width=6.*pass constructor="),
        (fails, ModelError, "ZeroDivisionError.*pass constructor="),
        (lambda **_options: 5, ModelError, "returned int.*pass constructor="),
    ],
)
def test_a_wrong_constructor_is_one_clear_error_when_loading(exported, constructor, error, words):
    with pytest.raises(error, match=words):
        load(exported, constructor=constructor)


def test_a_constructor_that_is_gone_is_named_and_can_be_passed(exported):
    edit(exported, lambda plan: plan["constructor"].update(name="gone_module:Net"))
    with pytest.raises(ModelError, match=r"gone_module:Net.*pass constructor="):
        load(exported)
    assert type(load(exported, constructor=Depthwise)) is Depthwise


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"constructor": Other}, ExportError, "is Depthwise, the constructor builds Other"),
        (
            {"constructor": SmallResNet, "options": {}},
            ExportError,
            "is Depthwise, the constructor builds SmallResNet",
        ),
        (
            {"options": {"widht": 6}},
            ModelError,
            "did you mean 'width'.*pass constructor= and options=",
        ),
        ({"constructor": lambda: Depthwise(6)}, ModelError, "cannot be imported by name"),
        ({"constructor": "nowhere:Net"}, ModelError, "nowhere"),
        ({"info": {"x": torch.zeros(1)}}, ExportError, "plain JSON values.*Tensor"),
        ({"options": {"width": 6, "kernel": np.int64(3)}}, ExportError, "plain JSON values.*int64"),
    ],
)
def test_a_wrong_constructor_is_one_clear_error_when_exporting(exported, arguments, error, words):
    kept = {path.name: path.read_bytes() for path in exported.iterdir()}
    with pytest.raises(error, match=words):
        export(
            built("depthwise"),
            exported,
            example_input=example(),
            **{"options": {"width": 6}, **arguments},
        )
    assert {path.name: path.read_bytes() for path in exported.iterdir()} == kept


class Strided(nn.Module):
    """Sizes that no tensor shows."""

    def __init__(self, stride=1, constant=1.0):
        super().__init__()
        self.conv, self.constant = nn.Conv2d(3, 4, 3), constant
        self.pool = nn.MaxPool2d(2, stride=stride) if stride > 0 else nn.Identity()

    def forward(self, x):
        return (self.constant * self.pool(self.conv(x))).amax(dim=(2, 3))


def test_a_network_that_loads_with_other_outputs_is_refused_and_the_older_export_stays(tmp_path):
    export(Strided(), tmp_path, example_input=example())
    kept = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ExportError, match="loads with other outputs, the largest difference is"):
        export(Strided(constant=2.0), tmp_path, example_input=example())
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == kept


def test_outputs_that_are_no_tensors_and_state_that_is_not_tensors_are_refused(tmp_path):
    with pytest.raises(
        ExportError, match=r"only networks that return tensors, alone or in tuples.*found Counter"
    ):
        export(Counting(), tmp_path, example_input=example())

    with pytest.raises(ExportError, match="more than parameters and buffers: _extra_state"):
        export(Extra(), tmp_path, example_input=example())


class Counter:
    pass


class Counting(nn.Conv2d):
    def __init__(self):
        super().__init__(3, 3, 1)

    def forward(self, x):
        del x
        return Counter()


class Extra(nn.Conv2d):
    def __init__(self):
        super().__init__(3, 3, 1)

    def get_extra_state(self):
        return {"x": 1}


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="cannot be written"):
        export(Strided(), tmp_path / "file", example_input=example())


@pytest.mark.parametrize(
    "name", ["os:system", "shutil:rmtree", "builtins:print", "tests.exporting.test_plan:number"]
)
def test_a_plan_cannot_call_what_makes_no_networks(tmp_path, name):
    model = SmallResNet()
    export(model, tmp_path, example_input=torch.zeros(1, 1, 8, 8))
    edit(tmp_path, {"constructor": {"name": name, "options": {}}})
    CALLED.clear()
    with pytest.raises(ModelError, match=r"is not (imported|called).*pass constructor=.*--trust"):
        load(tmp_path)
    assert not CALLED


def number() -> int:
    CALLED.append(1)
    return 1


CALLED = []


def test_files_of_an_export_can_be_read_by_others(tmp_path):
    export(SmallResNet(), tmp_path, example_input=torch.zeros(1, 1, 8, 8))
    modes = {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    (tmp_path / "plain").write_text("")
    assert modes == {(tmp_path / "plain").stat().st_mode & 0o777}


class Shuffled(nn.Module):
    """Padded channels, grouped and transposed convolution, group norm: sizes that no tensor tells."""

    def __init__(self):
        super().__init__()
        self.stem, self.wide = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 3, padding=1)
        self.pad = nn.ZeroPad3d((0, 0, 0, 0, 2, 2))
        self.group, self.norm = (
            nn.Conv2d(8, 16, 3, padding=1, groups=4),
            nn.GroupNorm(4, 16, affine=False),
        )
        self.up, self.head = nn.ConvTranspose2d(16, 6, 2), nn.Linear(6, 4)

    def forward(self, x):
        x = self.stem(x)
        x = self.norm(self.group(torch.relu(self.pad(x) + self.wide(x))))
        return self.head(torch.relu(self.up(x)).mean((2, 3)))


@pytest.mark.parametrize("seed", range(3))
def test_numbers_that_no_tensor_tells_come_back(tmp_path, seed):
    torch.manual_seed(seed)
    model, x = Shuffled().eval(), torch.rand(1, 3, 8, 8)
    graph = trace_channels(model, x)
    rng = np.random.default_rng(seed)
    candidate = [int(rng.integers(1, group.channels + 1)) for group in graph.prunable]
    sliced = slice_model(model, graph, candidate, rank_channels(model, graph, "random", seed=seed))
    export(sliced, tmp_path, example_input=x, constructor=Shuffled)
    again = load(tmp_path)
    assert torch.equal(again(x), sliced(x))
    assert again.pad.padding == sliced.pad.padding
    assert (again.group.groups, again.norm.num_groups) == (
        sliced.group.groups,
        sliced.norm.num_groups,
    )


def test_dropped_blocks_stay_dropped(tmp_path):
    model, x = SmallResNet(3, depths=(3, 2), widths=(4, 8)).eval(), torch.rand(1, 3, 8, 8)
    graph = trace_channels(model, x)
    widths = [max(1, group.channels // 2) for group in graph.prunable]
    sliced = slice_model(model, graph, [*widths, 0, 1, 0, 0], rank_channels(model, graph))
    folder = export(
        sliced,
        tmp_path,
        example_input=x,
        options={"in_channels": 3, "depths": [3, 2], "widths": [4, 8]},
    ).path
    assert json.loads((folder / "plan.json").read_text())["dropped"] == [
        "stages.0.0",
        "stages.0.2",
        "stages.1.1",
    ]
    again = load(folder)
    assert isinstance(again.stages[0][2], nn.Identity)
    assert torch.equal(again(x), sliced(x))
    assert again.state_dict().keys() == sliced.state_dict().keys()


def test_a_plan_that_drops_what_is_not_there_is_refused(tmp_path):
    model, x = SmallResNet(3).eval(), torch.rand(1, 3, 8, 8)
    folder = export(model, tmp_path, example_input=x, options={"in_channels": 3}).path
    edit(folder, {"dropped": ["stages.9.0"]})
    with pytest.raises(ExportError, match=r"stages\.9\.0 is missing"):
        load(folder)
