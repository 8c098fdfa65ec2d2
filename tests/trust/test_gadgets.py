"""Nothing out of a file runs: every name and every content that would, refused before it does."""

import json
import sys
import warnings
import zipfile

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from abcsearch.cli import app
from abcsearch.errors import ExportError, ModelError, RunError
from abcsearch.exporting import export, load
from abcsearch.models.resnet import SmallResNet
from abcsearch.runs.disk.folder import RunFolder
from tests.records import rewrite
from tests.trust import files

OPTIONS = {"in_channels": 1, "classes": 10, "widths": [4], "depths": [1]}
NODES = ("graph_module", "graph", "nodes")
VALUES = ("graph_module", "graph", "tensor_values")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with an export in every format."""
    folder = tmp_path_factory.mktemp("exports")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = SmallResNet(1, 10, (4,), (1,)).eval()
    info = {"data": {"name": "digits", "seed": 0}}
    for name in ("net", "net.onnx", "net.pt2"):
        export(
            model, folder / name, example_input=torch.zeros(2, 1, 8, 8), options=OPTIONS, info=info
        )
    return folder


@pytest.fixture
def marker(tmp_path):
    """A path that must not come to be."""
    path = tmp_path / "marker"
    yield path
    assert not path.exists()


def filled(value, marker):
    return json.loads(json.dumps(value).replace("MARKER", str(marker)))


def evaluated(path, *options):
    return CliRunner().invoke(app, ["evaluate", str(path), *options])


@pytest.mark.parametrize(("name", "options"), files.CONSTRUCTORS)
def test_a_plan_names_networks_and_nothing_else(made, tmp_path, marker, name, options):
    for file in (made / "net").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    rewrite(
        tmp_path / "plan.json", {"constructor": {"name": name, "options": filled(options, marker)}}
    )
    before = set(sys.modules)
    with pytest.raises((ModelError, ExportError), match=r"trust|unknown model"):
        load(tmp_path)
    top = name.partition(":")[0].partition(".")[0]
    allowed = {"abcsearch", "torch", "torchvision", "timm"}
    new = {module for module in set(sys.modules) - before if module.partition(".")[0] == top}
    assert top in allowed or not (new & sys.stdlib_module_names), new


def test_the_list_is_long_and_every_entry_is_another_one():
    entries = [json.dumps(entry, sort_keys=True) for entry in files.CONSTRUCTORS]
    assert len(entries) == len(set(entries)) > 100


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("small_resnet", OPTIONS),
        ("abcsearch.models.resnet:SmallResNet", OPTIONS),
        ("abcsearch.models.resnet:resnet20", {}),
        ("torchvision.models:resnet18", {}),
        ("torchvision.models:resnet18", {"weights": None}),
        ("torchvision.models.resnet:resnet18", {"num_classes": 3}),
        ("torchvision.models.vgg:VGG.__class__", None),
    ],
)
def test_networks_are_built_on_the_word_of_anybody(made, tmp_path, name, options):
    """They are other networks than the exported one, which is said only after they are built."""
    for file in (made / "net").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    rewrite(tmp_path / "plan.json", {"constructor": {"name": name, "options": options or {}}})
    if options is None:
        with pytest.raises(ModelError, match="no class __class__"):
            load(tmp_path)
    elif options == OPTIONS:
        assert isinstance(load(tmp_path), SmallResNet)
    else:
        with pytest.raises(ExportError, match="does not build the network that was exported"):
            load(tmp_path)


@pytest.mark.parametrize("data", files.DATA, ids=lambda data: data["name"])
@pytest.mark.parametrize("name", ["net", "net.onnx", "net.pt2"])
def test_an_export_does_not_say_what_data_are_loaded(made, tmp_path, marker, name, data):
    data, path = filled(data, marker), tmp_path / name
    if name == "net":
        path.mkdir()
        for file in (made / name).iterdir():
            (path / file.name).write_bytes(file.read_bytes())
        rewrite(path / "plan.json", {"info": {"data": data}})
    elif name == "net.onnx":
        files.with_onnx_data(made / name, path, data)
    else:
        facts = json.dumps({"info": {"data": data}}).encode()
        files.repacked(made / name, path, facts=facts)
    done = evaluated(path)
    assert done.exit_code == 2
    assert "an export does not decide what is imported or read" in done.output
    assert len(done.output.splitlines()) == 1
    assert evaluated(path, "--data", "digits").exit_code == 0


@pytest.mark.parametrize("location", ["/etc/hostname", "../net/plan.json", "weights.bin"])
def test_an_onnx_file_does_not_have_other_files_read(made, tmp_path, location):
    (tmp_path / "weights.bin").write_bytes(bytes(10**4))
    files.with_onnx_reference(made / "net.onnx", tmp_path / "net.onnx", location)
    with pytest.raises(ExportError, match="would have other files read"):
        load(tmp_path / "net.onnx")


CODE = "__import__('os').system('touch MARKER')"
SYMBOL = "Symbol('s77', positive=True, integer=True)"
ARCHIVES = {
    "a pickle among the inputs": {"add": [("net/data/sample_inputs/more.pt", "torch")]},
    "a pickle beside": {"add": [("net/evil.pkl", "pickle")]},
    "a pickle without an ending": {"add": [("net/data/weights/evil", "pickle")]},
    "a pickled constant": {"add": [("net/data/constants/opaque_value_0", "pickle")]},
    "a pickled constant of the oldest protocol": {
        "add": [("net/data/constants/opaque_obj_0", "oldest")]
    },
    "a pickle under a name like a weight's": {
        "add": [("net/models/weight_x.json", b"{}"), ("net/data/weights/weight_x.pt", "torch")]
    },
    "inputs in capital letters": {"add": [("net/data/sample_inputs/model.PT", "torch")]},
    "a second network": {"add": [("net/models/other.json", b"{}")]},
    "commands for a compiler": {
        "add": [
            ("net/data/aotinductor/model/x.wrapper.cpp", b"int x;"),
            (
                "net/data/aotinductor/model/x_compile_flags.json",
                b'{"compiler": "touch MARKER -- "}',
            ),
        ]
    },
    "a pickled old constant": {"add": [("serialized_constants.pt", "torch")]},
    "a pickled old state": {"add": [("serialized_state_dict.pt", "torch")]},
    "old inputs as JSON that are none": {"add": [("serialized_example_inputs.json", "torch")]},
    "an entry of the same name": {"add": [("net/models/model.json", b"{}")]},
    "an entry above": {"add": [("../evil.py", b"")]},
    "an entry at the root": {"add": [("/etc/evil", b"")]},
    "an entry with a control character": {"add": [("net/\x1b[2J", b"")]},
    "a library": {"add": [("net/data/aotinductor/model/model.so", b"\x7fELF" + bytes(10**5))]},
    "an operation of os": {"steps": (*NODES, 0, "target"), "value": "torch.os.system"},
    "an operation of sys": {"steps": (*NODES, 0, "target"), "value": "torch.sys.exit"},
    "an operation that loads": {"steps": (*NODES, 0, "target"), "value": "torch.ops.load_library"},
    "an operation that unpickles": {"steps": (*NODES, 0, "target"), "value": "torch.load"},
    "an operation that reads a file": {
        "steps": (*NODES, 0, "target"),
        "value": "torch.ops.aten.from_file.default",
    },
    "an operation that writes one": {
        "steps": (*NODES, 0, "target"),
        "value": "torch.ops.aten.save.default",
    },
    "an operation that is an attribute": {
        "steps": (*NODES, 0, "target"),
        "value": "torch.ops.aten.__getattr__.__globals__",
    },
    "an operation of a higher order": {
        "steps": (*NODES, 0, "target"),
        "value": "torch.ops.higher_order.print",
    },
    "an operation of another network": {
        "steps": (*NODES, 0, "target"),
        "value": "torch.ops.c10d.send.default",
    },
    "an operation that is none": {
        "steps": (*NODES, 0, "target"),
        "value": "torch.ops.aten.nothing.default",
    },
    "an operation of operator": {"steps": (*NODES, 0, "target"), "value": "_operator.methodcaller"},
    "an operation of math": {
        "steps": (*NODES, 0, "target"),
        "value": "math.__loader__.load_module",
    },
    "an operation as argument": {
        "steps": (*NODES, 0, "inputs", 0, "arg"),
        "value": {"as_operator": "torch.os.system"},
    },
    "a command as argument": {
        "steps": (*NODES, 0, "inputs", 0, "arg"),
        "value": {"as_string": "touch MARKER; x"},
    },
    "a size that is code": {
        "steps": (*VALUES, "x", "sizes", 0),
        "value": {"as_expr": {"expr_str": CODE, "hint": {"as_int": 2}}},
    },
    "a size with an attribute": {
        "steps": (*VALUES, "x", "sizes", 0),
        "value": {"as_expr": {"expr_str": f"{SYMBOL}.__class__", "hint": None}},
    },
    "a size that calls": {
        "steps": (*VALUES, "x", "sizes", 0),
        "value": {"as_expr": {"expr_str": "exit(1)", "hint": None}},
    },
    "a size that never ends": {
        "steps": (*VALUES, "x", "sizes", 0),
        "value": {"as_expr": {"expr_str": "9**9**9**9", "hint": None}},
    },
    "a size that never ends, in words": {
        "steps": (*VALUES, "x", "sizes", 0),
        "value": {"as_expr": {"expr_str": "Pow(9, Pow(9, 9))", "hint": None}},
    },
    "a size that is shifted": {
        "steps": (*VALUES, "x", "sizes", 0),
        "value": {"as_expr": {"expr_str": "1 << 999999999", "hint": None}},
    },
    "a size of a value that is named like a note": {
        "steps": (*VALUES, "stack_trace"),
        "value": {"sizes": [{"as_expr": {"expr_str": CODE, "hint": None}}]},
    },
    "a size in brackets": {
        "steps": (*VALUES, "x", "sizes", 0),
        "value": {"as_expr": {"expr_str": "Integer[s77]", "hint": None}},
    },
    "an input that is code": {
        "steps": ("graph_module", "graph", "inputs", -1),
        "value": {"as_tensor": {"name": f"x={CODE}"}},
    },
    "a value that is code": {
        "steps": (*NODES, 0, "outputs"),
        "value": [{"as_tensor": {"name": f"x={CODE}"}}],
    },
    "a value of two lines": {
        "steps": (*NODES, 0, "outputs"),
        "value": [{"as_tensor": {"name": "x\nimport os"}}],
    },
    "an argument that is code": {
        "steps": ("graph_module", "module_call_graph", 0, "signature", "forward_arg_names"),
        "value": [f"x={CODE}"],
    },
    "a guard that is code": {"steps": ("guards_code",), "value": [CODE]},
    "a structure of another type": {
        "steps": ("graph_module", "module_call_graph", 0, "signature", "in_spec"),
        "value": json.dumps([1, {"type": "os.system", "context": "null", "children_spec": []}]),
    },
    "a structure with code": {
        "steps": ("graph_module", "module_call_graph", 0, "signature", "out_spec"),
        "value": json.dumps([1, {"type": "builtins.dict", "context": CODE, "children_spec": []}]),
    },
    "a constraint that is code": {
        "steps": ("range_constraints",),
        "value": {CODE: {"min_val": 0, "max_val": None}},
    },
}


@pytest.mark.parametrize("how", ARCHIVES.values(), ids=list(ARCHIVES))
def test_a_pt2_archive_holds_tensors_and_graphs_and_nothing_else(made, tmp_path, marker, how):
    path = tmp_path / "net.pt2"
    contents = {"torch": files.torch_pickled(marker), "pickle": files.pickled(marker)}
    contents["oldest"] = files.pickled(marker, protocol=0)
    add = [(name, contents.get(content, content)) for name, content in how.get("add", ())]
    change = (
        files.in_graph(*how["steps"], value=filled(how["value"], marker))
        if "steps" in how
        else None
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of two entries with one name
        files.repacked(made / "net.pt2", path, change=change, add=add)
    with pytest.raises(ExportError, match=r"is not read: .*could run code") as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert evaluated(path).exit_code == 2


def test_a_pickled_weight_is_refused_although_torch_would_read_it(made, tmp_path, marker):
    def change(name, content):
        if name.endswith("model_weights_config.json"):
            config = json.loads(content)
            next(iter(config["config"].values()))["use_pickle"] = True
            return json.dumps(config).encode()
        return files.torch_pickled(marker) if name.endswith("weight_0") else content

    files.repacked(made / "net.pt2", tmp_path / "net.pt2", change=change)
    with pytest.raises(ExportError, match="says that a tensor is pickled"):
        load(tmp_path / "net.pt2")


def test_a_compressed_archive_is_not_unpacked(made, tmp_path):
    files.repacked(made / "net.pt2", tmp_path / "net.pt2", packing=zipfile.ZIP_DEFLATED)
    with pytest.raises(ExportError, match="its entries are compressed"):
        load(tmp_path / "net.pt2")


def test_an_archive_of_somebody_else_is_read_where_it_only_computes(made, tmp_path):
    files.repacked(made / "net.pt2", tmp_path / "net.pt2")
    batch = torch.rand(3, 1, 8, 8)
    assert torch.equal(load(tmp_path / "net.pt2")(batch), load(made / "net.pt2")(batch))


def test_what_an_archive_says_of_itself_counts_for_no_other_network(made, tmp_path):
    with zipfile.ZipFile(made / "net.pt2") as archive:
        facts = archive.read("net/extra/abcsearch.json")

    def other(name, content):
        return content[:-1] + bytes([content[-1] ^ 1]) if name.endswith("weight_0") else content

    files.repacked(made / "net.pt2", tmp_path / "net.pt2", change=other, facts=facts)
    with pytest.raises(ExportError, match="is not what was written"):
        load(tmp_path / "net.pt2")


def test_such_an_archive_does_run_code_where_it_is_believed(made, tmp_path):
    """Otherwise the list above would show nothing; torch evaluates sizes."""
    how, marker, path = ARCHIVES["a size that is code"], tmp_path / "ran", tmp_path / "net.pt2"
    files.repacked(
        made / "net.pt2",
        path,
        change=files.in_graph(*how["steps"], value=filled(how["value"], marker)),
    )
    with pytest.raises(ExportError):  # what the code returns is no size
        load(path, trust=True)
    assert marker.exists()


@pytest.mark.parametrize("kind", ["net", "net.onnx", "net.pt2"])
def test_what_is_written_here_is_read_without_questions(made, kind):
    assert load(made / kind)(torch.zeros(3, 1, 8, 8)).shape == (3, 10)
    assert evaluated(made / kind).exit_code == 0


@pytest.mark.parametrize("dtype", ["|O", "O", "object", "V999999999", "x"])
def test_an_array_in_a_record_is_of_numbers(tmp_path, dtype):
    RunFolder(tmp_path).write_json("searcher.json", {"a": np.zeros(1)})
    rewrite(
        tmp_path / "searcher.json",
        {"a": {"__array__": dtype, "shape": [1], "data": "AAAAAAAAAAA="}},
    )
    with pytest.raises(RunError, match=r"searcher\.json is damaged"):
        RunFolder(tmp_path).read_json("searcher.json")
