"""Files that would run code, import modules, or read what lies elsewhere, if they were believed."""

import io
import json
import pickle
import zipfile

import onnx
import torch


class Command:
    """Unpickled, it runs a shell command."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        import os

        return os.system, (self.command,)


def pickled(marker, protocol=None):
    return pickle.dumps(Command(f"touch {marker}"), protocol)


def torch_pickled(marker):
    held = io.BytesIO()
    torch.save({"x": Command(f"touch {marker}")}, held)
    return held.getvalue()


# What a plan may name that is no network: (name, options). MARKER in an option is a path that must not come to be.
TOUCH = "touch MARKER"
CONSTRUCTORS = [
    # the standard library, however it is reached
    ("os:system", {"command": TOUCH}),
    ("posix:system", {"command": TOUCH}),
    ("os:popen", {"cmd": TOUCH}),
    ("os:mkdir", {"path": "MARKER"}),
    ("os:makedirs", {"name": "MARKER"}),
    ("os:open", {"path": "MARKER", "flags": 65}),
    ("os:execvp", {"file": "touch", "args": ["touch", "MARKER"]}),
    ("subprocess:run", {"args": ["touch", "MARKER"]}),
    ("subprocess:call", {"args": ["touch", "MARKER"]}),
    ("subprocess:Popen", {"args": ["touch", "MARKER"]}),
    ("subprocess:getoutput", {"cmd": TOUCH}),
    ("builtins:exec", {}),
    ("builtins:eval", {}),
    ("builtins:open", {"file": "MARKER", "mode": "w"}),
    ("builtins:print", {"file": None}),
    ("builtins:__import__", {"name": "antigravity"}),
    ("io:open", {"file": "MARKER", "mode": "w"}),
    ("codecs:open", {"filename": "MARKER", "mode": "w"}),
    ("pathlib:Path.mkdir", {}),
    ("shutil:rmtree", {"path": "MARKER"}),
    ("shutil:copyfile", {"src": "/etc/hostname", "dst": "MARKER"}),
    ("tempfile:mkdtemp", {"prefix": "MARKER"}),
    ("importlib:import_module", {"name": "antigravity"}),
    ("runpy:run_path", {"path_name": "MARKER"}),
    ("pickle:loads", {}),
    ("code:interact", {}),
    ("pdb:set_trace", {}),
    ("timeit:timeit", {"stmt": "open('MARKER', 'w')"}),
    ("cProfile:run", {"statement": "open('MARKER', 'w')"}),
    ("webbrowser:open", {"url": "file:///MARKER"}),
    ("ctypes:CDLL", {"name": "MARKER"}),
    ("ctypes.util:find_library", {"name": "c"}),
    ("multiprocessing:Process", {"target": None}),
    ("threading:Thread", {"target": None}),
    ("logging:FileHandler", {"filename": "MARKER"}),
    ("logging.config:fileConfig", {"fname": "MARKER"}),
    ("sqlite3:connect", {"database": "MARKER"}),
    ("shelve:open", {"filename": "MARKER"}),
    ("zipfile:ZipFile", {"file": "MARKER", "mode": "w"}),
    ("urllib.request:urlopen", {"url": "file:///etc/hostname"}),
    ("smtplib:SMTP", {"host": "localhost"}),
    ("sys:exit", {}),
    ("antigravity:geohash", {}),
    ("this:s", {}),
    ("idlelib.idle:main", {}),
    ("turtledemo.__main__:main", {}),
    ("__main__:main", {}),
    # modules that other modules have imported
    ("torch:os.system", {"command": TOUCH}),
    ("torch:sys.exit", {}),
    ("torch.serialization:os.system", {"command": TOUCH}),
    ("torch.nn.modules.module:torch.save", {"obj": [1], "f": "MARKER"}),
    ("numpy:os.system", {"command": TOUCH}),
    ("abcsearch.files:os.system", {"command": TOUCH}),
    ("abcsearch.models.registry:sys.exit", {}),
    # functions and classes of installed packages
    ("torch:load", {"f": "MARKER"}),
    ("torch:save", {"obj": [1], "f": "MARKER"}),
    ("torch.jit:load", {"f": "MARKER"}),
    ("torch.hub:load", {"repo_or_dir": "x/y", "model": "z"}),
    ("torch.hub:download_url_to_file", {"url": "file:///etc/hostname", "dst": "MARKER"}),
    ("torch.hub:load_state_dict_from_url", {"url": "file:///etc/hostname"}),
    ("torch.utils.cpp_extension:load_inline", {"name": "x", "cpp_sources": "int x;"}),
    ("torch.utils.data:DataLoader", {"dataset": [1]}),
    ("torch.utils.bottleneck.__main__:main", {}),
    ("torch.ops:load_library", {"path": "MARKER"}),
    ("torch.classes:load_library", {"path": "MARKER"}),
    ("torch:compile", {}),
    ("torch.package:PackageImporter", {"file_or_buffer": "MARKER"}),
    ("torch.distributed.run:main", {"args": ["x"]}),
    ("torch.nn:Module.load_state_dict", {}),
    ("torch.nn:init", {}),
    ("torchvision.datasets:CIFAR10", {"root": "MARKER", "download": True}),
    ("torchvision.datasets:FakeData", {}),
    ("torchvision.io:read_file", {"path": "/etc/hostname"}),
    ("torchvision.models:get_model", {"name": "resnet18"}),
    ("torchvision.utils:save_image", {"tensor": [1], "fp": "MARKER"}),
    ("numpy:load", {"file": "MARKER"}),
    ("numpy:savetxt", {"fname": "MARKER", "X": [1]}),
    ("numpy:memmap", {"filename": "MARKER", "mode": "w+", "shape": [1]}),
    ("numpy.f2py:run_main", {"comline_list": ["MARKER"]}),
    ("numpy.ctypeslib:load_library", {"libname": "MARKER", "loader_path": "/"}),
    ("matplotlib.pyplot:savefig", {"fname": "MARKER"}),
    ("matplotlib.figure:Figure", {}),
    ("sklearn.datasets:fetch_openml", {"name": "mnist_784"}),
    ("sklearn.datasets:load_svmlight_file", {"f": "MARKER"}),
    ("scipy.io:savemat", {"file_name": "MARKER", "mdict": {}}),
    ("ray:init", {"address": "127.0.0.1:1"}),
    ("optuna:create_study", {"storage": "sqlite:///MARKER"}),
    ("rich.console:Console", {}),
    ("typer:launch", {"url": "MARKER"}),
    ("pip.__main__:main", {}),
    ("pip._internal:main", {"args": ["download", "x"]}),
    ("filelock:FileLock", {"lock_file": "MARKER"}),
    # this package
    ("abcsearch:resume", {"run_dir": "MARKER"}),
    ("abcsearch:load", {"path": "MARKER"}),
    ("abcsearch:load_data", {"name": "os:system", "command": TOUCH}),
    ("abcsearch.importing:import_callable", {"what": "", "path": "os:system", "kind": None}),
    ("abcsearch.models.registry:Constructor", {"name": "os:system"}),
    ("abcsearch.runs.disk.folder:RunFolder", {"path": "MARKER"}),
    ("abcsearch.cli:main", {}),
    # no names of anything
    ("", {}),
    (":", {}),
    ("os", {}),
    (":system", {}),
    ("os:", {}),
    ("a b:c", {}),
    ("../evil:Net", {}),
    ("evil/net:Net", {}),
    ("torch.nn:Linear()", {}),
    ("torch.nn:Linear.__init__", {}),
    ("torch.nn:Linear.__class__", {}),
    ("torch.nn:Linear.__subclasses__", {}),
    ("torch.nn..:Linear", {}),
    (".torch.nn:Linear", {}),
    # networks whose options would have something loaded
    ("torchvision.models:resnet18", {"weights": "DEFAULT"}),
    ("torchvision.models.resnet:resnet18", {"weights": "IMAGENET1K_V1"}),
    ("torchvision.models.segmentation:fcn_resnet50", {}),
    ("torchvision.models.segmentation:fcn_resnet50", {"weights_backbone": "DEFAULT"}),
    ("small_resnet", {"pretrained": True}),
    ("abcsearch.models.resnet:SmallResNet", {"checkpoint_path": "MARKER"}),
    ("abcsearch.models.resnet:SmallResNet", {"trust_remote_code": True}),
]

# Data that a file may say it is for, and that nobody has to load for it.
DATA = [
    {"name": "os:system", "command": TOUCH},
    {"name": "subprocess:getoutput", "cmd": TOUCH},
    {"name": "builtins:open", "file": "MARKER", "mode": "w"},
    {"name": "numpy:load", "file": "/etc/hostname"},
    {"name": "evil:data"},
    {"name": "npz", "path": "/etc/hostname"},
    {"name": "image_folder", "path": "/etc"},
    {"name": "cifar10", "path": "/etc"},
    {"name": "imagenet", "path": "/etc"},
]


def with_onnx_data(source, target, data):
    """Copies an .onnx file with other data in its metadata."""
    model = onnx.load(source)
    text = json.loads(model.metadata_props[0].value)
    text = {key: value for key, value in text.items() if key in ("input_shape", "info")}
    text["info"]["data"] = data
    onnx.helper.set_model_props(model, {"abcsearch": json.dumps(text)})
    target.write_bytes(model.SerializeToString())


def with_onnx_reference(source, target, location):
    """Copies an .onnx file whose first tensor is said to lie in another file."""
    model = onnx.load(source)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location
    target.write_bytes(model.SerializeToString())


def repacked(source, target, *, change=None, add=(), facts=None, packing=zipfile.ZIP_STORED):
    """Copies an archive.

    Args:
        source: of the archive.
        target: of the copy.
        change: maps name and content of an entry to its content.
        add: further entries: (name, content).
        facts: what the copy says of itself; without, nothing: what the archive said is not true of it.
        packing: of the entries.
    """
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(target, "w", packing) as copy:
        for name in archive.namelist():
            content = archive.read(name)
            if name.endswith("extra/abcsearch.json"):
                if facts is None:
                    continue
                content = facts
            copy.writestr(name, content if change is None else change(name, content))
        for name, content in add:
            copy.writestr(name, content)


def in_graph(*steps, value):
    """Returns a change of an archive: sets a value deep in its graph."""

    def change(name, content):
        if not name.endswith("models/model.json"):
            return content
        graph = json.loads(content)
        inner = graph
        for step in steps[:-1]:
            inner = inner[step]
        inner[steps[-1]] = value
        return json.dumps(graph).encode()

    return change
