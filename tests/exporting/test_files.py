"""Files .onnx and .pt2: they compute what the network does, need nothing of ours, and are refused where they do not."""

import copy
import json
import pickle
import subprocess
import sys
import sysconfig
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from abcsearch.config import _named
from abcsearch.data.split import Split
from abcsearch.errors import ExportError
from abcsearch.exporting import export, files, interchange, load, open_export, targets
from abcsearch.models.registry import Constructor
from abcsearch.rng import torch_seeded
from abcsearch.training.loop import train
from abcsearch.training.objectives import OUTPUTS
from abcsearch.training.recipe import Recipe
from tests.exporting.test_plan import assert_same, built, example, sliced

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
FORMATS = ("onnx", "pt2")
ROOT = Path(__file__).parents[2]


class Small(nn.Module):
    """Little to trace: most tests are about files."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.linear = nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Linear(5, 4)

    def forward(self, x):
        return self.linear(torch.relu(self.bn(self.conv(x))).mean(dim=(2, 3)))


def small():
    with torch_seeded(0, "init"):
        return Small().eval()


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("name", ["small_resnet", "depthwise", "vgg"])
def test_a_file_computes_what_the_sliced_network_does_for_any_batch(tmp_path, kind, name):
    network = sliced(built(name), 1)
    made = export(network, tmp_path / f"net.{kind}", example_input=example(1))
    assert (made.path, made.format, made.size) == (
        tmp_path / f"net.{kind}",
        kind,
        Path(made).stat().st_size,
    )
    assert [path.name for path in tmp_path.iterdir()] == [f"net.{kind}"]
    found = load(made)
    for size in (1, 2, 3, 7):
        images = torch.randn(size, 3, 16, 16, generator=torch.Generator().manual_seed(size))
        with torch.inference_mode():
            expected = network(images)
            assert torch.allclose(
                found(images), expected, rtol=0, atol=1e-5 * float(expected.abs().max())
            )
    assert 0 <= made.difference <= 1e-5 * made.largest
    assert f"{made.size:,} bytes; largest difference {made.difference:.2g} of outputs" in str(made)


@pytest.mark.parametrize("kind", FORMATS)
def test_the_network_is_left_alone(tmp_path, kind):
    network = small()
    network.train()
    network.bn.eval()
    called = []
    network.register_forward_hook(lambda *_: called.append(1))
    before, state = copy.deepcopy(network), torch.get_rng_state()
    export(network, tmp_path, example_input=example(), format=kind)
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in network.modules()] == [m.training for m in before.modules()]
    assert len(network._forward_hooks) == 1
    for one, other in zip(network.state_dict().values(), before.state_dict().values(), strict=True):
        assert torch.equal(one, other)


SCRIPT = """
import importlib.util, sys
sys.path.append(sys.argv[1])
import numpy, torch
assert all(importlib.util.find_spec(name) is None for name in ("abcsearch", "tests"))
network = torch.export.load("net.pt2").module()
print(float(abs(network(torch.from_numpy(numpy.load("x.npy"))) - torch.from_numpy(numpy.load("y.npy"))).max()))
"""


def test_a_pt2_file_loads_where_there_is_neither_abcsearch_nor_the_class(tmp_path):
    network, images = sliced(built("depthwise"), 0), example(3)
    export(network, tmp_path / "net.pt2", example_input=example())
    np.save(tmp_path / "x.npy", images.numpy())
    np.save(tmp_path / "y.npy", network(images).detach().numpy())
    # -S: without the .pth files that make abcsearch importable in its own environment.
    command = [sys.executable, "-I", "-S", "-c", SCRIPT, sysconfig.get_path("purelib")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == 0


def test_a_pt2_file_holds_no_pickle_and_no_path_of_this_machine(tmp_path):
    made = export(small(), tmp_path, example_input=example(), format="pt2")
    with zipfile.ZipFile(made) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    assert len(contents) > 10
    for name, content in contents.items():
        assert not name.endswith(".pkl")
        assert not content.startswith((b"PK", b"\x80")), name
        assert str(ROOT).encode() not in content, name


def test_a_traced_network_learns_no_mode_and_can_be_written_in_the_other_format(tmp_path):
    network = small()
    found = load(export(network, tmp_path, example_input=example(), format="pt2"))
    assert found.train() is found
    again = load(export(found, tmp_path, example_input=example(), format="onnx"))
    assert torch.allclose(again(example(5)), network(example(5)), atol=1e-5)
    with pytest.raises(ExportError, match="without a class: it is exported as onnx or pt2"):
        export(found, tmp_path, example_input=example(), format="safetensors")


@pytest.mark.parametrize("kind", ["safetensors", *FORMATS])
def test_an_export_says_what_it_was_told(tmp_path, kind):
    info = {"data": {"name": "digits"}, "note": "ä", "numbers": [1, 2.5, None]}
    made = export(small(), tmp_path, example_input=example(1), format=kind, info=info)
    assert open_export(made)[1] == {"input_shape": [1, 3, 16, 16], "info": info}
    assert made.how_to_load.endswith(f"({str(made.path)!r}){'.module()' if kind == 'pt2' else ''}")
    if kind == "onnx":
        (prop,) = onnx.load(made.path).metadata_props
        assert json.loads(prop.value)["info"] == info
    if kind == "pt2":
        extra = {"abcsearch.json": ""}
        torch.export.load(made.path, extra_files=extra)
        assert json.loads(extra["abcsearch.json"])["info"] == info
    with pytest.raises(ExportError, match="plain JSON values"):
        export(small(), tmp_path, example_input=example(1), format=kind, info={"x": torch.zeros(1)})


class Deformed(nn.Module):
    """Has an operation that torch does not know by itself."""

    def __init__(self):
        super().__init__()
        self.offsets, self.conv = nn.Conv2d(3, 18, 3), nn.Conv2d(3, 5, 3)

    def forward(self, x):
        offsets = self.offsets(x)
        return torchvision.ops.deform_conv2d(x, offsets, self.conv.weight).mean(dim=(2, 3))


@pytest.mark.parametrize(
    ("links", "words"),
    [
        ([], "take a folder: abcsearch export RUN_DIR --format safetensors --out FOLDER"),
        (["low_rank"], "take a folder: abcsearch export RUN_DIR --format safetensors"),
        (
            ["quantize"],
            "a folder, of the network before int8: abcsearch export RUN_DIR --link 0 --out",
        ),
        (["low_rank", "sparsify", "quantize"], "of sparsify before int8: .* --link 2 --out FOLDER"),
    ],
)
def test_a_folder_of_a_traced_network_alone_says_that_it_cannot_be_pruned(tmp_path, links, words):
    """And which link before it can; not to write the same again."""
    info = {"chain": [{"name": name} for name in links]}
    made = export(small(), tmp_path, example_input=example(), format="pt2", info=info)
    for given in (tmp_path, made.path):
        with pytest.raises(ExportError, match=f"model.pt2 is a traced computation, .* {words}"):
            _named("model", {"export": str(given)})
    made.path.write_bytes(b"nothing that can be read")
    with pytest.raises(
        ExportError, match=r"model.pt2 is a traced computation, .* --format safetensors"
    ):
        load(tmp_path)
    made.path.rename(tmp_path / "model.onnx")
    with pytest.raises(ExportError, match=r"model.onnx is a traced computation"):
        load(tmp_path)


USE = {
    "onnx": "session.run(None, {session.get_inputs()[0].name: numpy.ones((2, 3, 16, 16), 'float32')})[0]",
    **dict.fromkeys(
        ("pt2", "safetensors", "compressed"),
        "network(torch.ones(2, 3, 16, 16)).detach().numpy()",
    ),
}


@pytest.mark.parametrize(
    ("kind", "network"),
    [*((kind, None) for kind in targets.FORMATS), ("pt2", Deformed)],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_what_is_said_to_load_it_does_in_a_process_that_knows_nothing_else(tmp_path, kind, network):
    options = {"widths": [4, 6], "depths": [1, 1], "in_channels": 3}
    built_by = {} if kind in FORMATS else {"constructor": "small_resnet", "options": options}
    with torch_seeded(0, "init"):
        model = (
            network or (lambda: Constructor(name="small_resnet", options=options).build())
        )().eval()
    path = tmp_path / f"it's here{'' if built_by else f'.{kind}'}"
    made = export(model, path, example_input=example(), format=kind, **built_by)
    code = f"{made.how_to_load}\nimport numpy, torch; numpy.save('y.npy', {USE[kind]})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    expected = model(torch.ones(2, 3, 16, 16)).detach().numpy()
    assert np.abs(np.load(tmp_path / "y.npy") - expected).max() <= 1e-4 * np.abs(expected).max()
    assert load(made)(torch.ones(1, 3, 16, 16)).shape == expected[:1].shape


def test_an_onnx_file_is_valid_whole_and_names_its_batch(tmp_path):
    made = export(small(), tmp_path, example_input=example(), format="onnx")
    proto = onnx.load(made.path, load_external_data=False)
    onnx.checker.check_model(proto, full_check=True)
    sizes = [
        value.type.tensor_type.shape.dim[0].dim_param
        for value in (*proto.graph.input, *proto.graph.output)
    ]
    assert sizes == ["batch", "batch"]
    assert not any(tensor.external_data for tensor in proto.graph.initializer)
    session = ort.InferenceSession(str(made.path), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: example(4).numpy()})
    assert found.shape == (4, 4)


class Maps(nn.Module):
    """Returns its output beside another one, as torchvision's segmentation networks do."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1)

    def forward(self, x):
        return {"out": self.conv(x), "aux": x}


@pytest.mark.parametrize("kind", ["safetensors", *FORMATS])
def test_of_several_outputs_all_are_exported_or_the_one_that_the_user_says(
    tmp_path, kind, monkeypatch
):
    network = Maps().eval()
    found = load(export(network, tmp_path / "all", example_input=example(), format=kind))(
        example(3)
    )
    expected = network(example(3))
    assert list(found) == ["out", "aux"]
    for name, tensor in expected.items():
        assert torch.allclose(found[name], tensor, atol=1e-6)
    monkeypatch.setitem(OUTPUTS, Maps, lambda returned: returned["out"])
    found = load(export(network, tmp_path / "one", example_input=example(), format=kind))(
        example(3)
    )
    found = found["out"] if kind == "safetensors" else found
    assert torch.allclose(found, expected["out"], atol=1e-6)


class Fixed(nn.Module):
    """Takes batches of two."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(768, 4)

    def forward(self, x):
        return self.linear(x.reshape(2, 768))


class Deciding(nn.Module):
    """Computes otherwise for larger batches."""

    def forward(self, x):
        return x.mean(dim=(2, 3)) if x.shape[0] < 4 else x.amax(dim=(2, 3))


class Untraceable(nn.Module):
    def forward(self, x):
        return x.mean(dim=(2, 3)) if float(x.sum()) > 0 else x.amax(dim=(2, 3))


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (
            Fixed,
            r"does not run on a batch \(1, 3, 16, 16\).*batches of any size: read it off the input",
        ),
        (Deciding, "fixes the size of the batch.*read it off the input"),
        (Untraceable, "torch.export cannot follow the network.*safetensors needs no tracing"),
    ],
)
def test_what_cannot_be_traced_for_any_batch_is_one_clear_error(tmp_path, network, words):
    with pytest.raises(ExportError, match=words):
        export(network(), tmp_path, example_input=example(), format="pt2")
    assert not list(tmp_path.iterdir())
    # As safetensors it can
    assert export(network(), tmp_path, example_input=example()).difference == 0


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_that_computes_something_else_is_refused_and_the_older_one_stays(
    tmp_path, kind, monkeypatch
):
    made = export(small(), tmp_path, example_input=example(), format=kind)
    before = made.path.read_bytes()
    other = small()
    with torch.no_grad():
        other.linear.bias[1] += 0.01
    program = interchange.traced(other, example())
    monkeypatch.setattr(files, "traced", lambda *_: program)
    with pytest.raises(
        ExportError, match=r"computes other outputs: the largest difference is 0.01"
    ):
        export(small(), tmp_path, example_input=example(), format=kind)
    assert made.path.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [made.path.name]
    assert (
        export(small(), tmp_path, example_input=example(), format=kind, tolerance=0.5).difference
        > 0.009
    )


@pytest.mark.parametrize(
    ("path", "kind", "words"),
    [
        ("x.onnx", "pt2", r"written as pt2 but ends in \.onnx"),
        ("x.pt2", "safetensors", r"written as safetensors but ends in \.pt2"),
        ("x", "onx", "unknown export format 'onx'; did you mean 'onnx'"),
    ],
)
def test_formats_and_endings_that_contradict_are_refused(tmp_path, path, kind, words):
    with pytest.raises(ExportError, match=words):
        export(small(), tmp_path / path, example_input=example(), format=kind)


class Looking(nn.Module):
    """Takes numbers as indices."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(2, 3)

    def forward(self, x):
        return self.table((x.flatten(1) * 1.5).abs().long()).sum(1)


def test_what_does_not_depend_on_the_batch_is_not_explained_with_it(tmp_path, capfd):
    with pytest.raises(
        ExportError, match="but not on standard normal numbers in its place"
    ) as caught:
        export(Looking(), tmp_path / "x.pt2", example_input=example())
    assert "any size" not in str(caught.value)
    with pytest.raises(ExportError, match="cannot follow the network"):
        export(Untraceable(), tmp_path / "x.pt2", example_input=example())
    assert capfd.readouterr() == ("", "")


def test_double_precision_that_onnxruntime_has_not_is_said_without_temporary_paths(tmp_path):
    with pytest.raises(
        ExportError, match=r"cannot be read back: x.onnx is .*export it as model.float\(\)"
    ) as caught:
        export(small().double(), tmp_path / "x.onnx", example_input=example().double())
    assert ".export-" not in str(caught.value)
    assert not list(tmp_path.iterdir())


class Normed(nn.Module):
    """Keeps a computed weight after a forward pass: torch does not copy it."""

    def __init__(self):
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.conv = nn.utils.weight_norm(nn.Conv2d(3, 4, 1))

    def forward(self, x):
        return self.conv(x).mean(dim=(2, 3))


@pytest.mark.parametrize("kind", ["safetensors", "pt2"])
def test_a_network_that_cannot_be_copied_is_one_clear_error(tmp_path, kind):
    network = Normed()
    network(example())
    with pytest.raises(ExportError, match=r"cannot be copied.*remove_weight_norm\(layer\)"):
        export(network, tmp_path / "new", example_input=example(), format=kind)
    assert not list(tmp_path.iterdir())
    nn.utils.remove_weight_norm(network.conv)
    assert export(network, tmp_path / "net.pt2", example_input=example()).difference == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"example_input": example(2)[:0]}, r"of at least one input, found \(0, 3, 16, 16\)"),
        ({"example_input": torch.zeros(3)}, r"one batch as a tensor.*found \(3,\)"),
        ({"example_input": [1]}, "one batch as a tensor.*found list"),
        ({"tolerance": "a"}, "tolerance is a share .* found 'a'"),
        ({"tolerance": float("nan")}, "tolerance is .* found nan"),
        ({"tolerance": -1e-3}, "tolerance is .* found -0.001"),
        ({"tolerance": True}, "tolerance is .* found True"),
        ({"info": [1, 2]}, "info is a table .* found list"),
        ({"options": "x"}, "options is a table .* found str"),
    ],
)
@pytest.mark.parametrize("kind", ["safetensors", *FORMATS])
def test_wrong_arguments_are_one_clear_error(tmp_path, arguments, words, kind):
    with pytest.raises(ExportError, match=words):
        export(small(), tmp_path / "new", format=kind, **{"example_input": example(), **arguments})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ExportError, match=rf"\({package}\): pip install 'abcsearch\[onnx\]'"):
        export(small(), tmp_path / "x.onnx", example_input=example())


@pytest.fixture(scope="module")
def two_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    return {
        kind: export(small(), folder, example_input=example(), format=kind).path.read_bytes()
        for kind in FORMATS
    }


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(
    "damage", ["empty", "text", "half", "pickle", "state dict", "other format"]
)
def test_a_damaged_file_is_one_clear_error(tmp_path, two_files, kind, damage, capfd):
    path, whole = tmp_path / f"net.{kind}", two_files[kind]
    if damage == "state dict":
        torch.save(small().state_dict(), path)
    else:
        other = two_files["pt2" if kind == "onnx" else "onnx"]
        contents = {
            "empty": b"",
            "text": b"no network",
            "half": whole[: len(whole) // 2],
            "pickle": pickle.dumps([1]),
        }
        path.write_bytes(contents.get(damage, other))
    with pytest.raises(ExportError) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_file_of_another_kind_is_one_clear_error(tmp_path):
    torch.save(small().state_dict(), tmp_path / "net.pt")
    with pytest.raises(ExportError, match=r"net\.pt is not an export: that is a folder with"):
        load(tmp_path / "net.pt")


def test_a_fine_tuned_export_goes_through_a_folder_unchanged(tmp_path):
    network = small()
    train(
        network,
        Split(example(32), torch.arange(32) % 4),
        Recipe(epochs=1, batch_size=16),
        seed=0,
        stream="finetune",
    )
    made = export(network, tmp_path / "a", example_input=example())
    assert_same(network, load(made))
    assert made.difference == 0
    assert made.size == sum(path.stat().st_size for path in (tmp_path / "a").iterdir())


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["safetensors", *FORMATS])
def test_a_network_on_a_gpu_is_exported_for_the_cpu_and_stays_where_it_is(tmp_path, kind):
    network = small().cuda()
    made = export(network, tmp_path, example_input=example(), format=kind)
    assert all(tensor.is_cuda for tensor in network.state_dict().values())
    assert torch.allclose(load(made)(example(3)), network.cpu()(example(3)), atol=1e-5)
