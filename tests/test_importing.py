"""Names of the user's and names out of files: what is imported for which."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from abcsearch.errors import ConfigError, ModelError
from abcsearch.importing import import_callable, import_class, import_named

ROOT = Path(__file__).parents[1]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def write(folder, name, text):
    (folder / f"{name}.py").write_text(textwrap.dedent(text))


LOUD = "raise SystemExit('imported')\n"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("script_without_it", LOUD),
        ("script_with_a_function", "def Net(): pass\n" + LOUD),
        ("script_with_a_value", "Net = print\n" + LOUD),
        ("script_with_an_inner_class", "def f():\n    class Net: pass\n" + LOUD),
        ("script_with_a_class_in_a_class", "class A:\n    class Net: pass\n" + LOUD),
        ("script_with_the_name_in_a_text", "'class Net: pass'\n" + LOUD),
        ("script_that_is_no_python", "class Net: pass\n)" + LOUD),
    ],
)
def test_a_module_without_such_a_class_is_not_run(folder, name, text):
    write(folder, name, text)
    with pytest.raises(ValueError, match=f"{name} has no (class|source)"):
        import_class(f"{name}:Net", frozenset())
    assert name not in sys.modules


@pytest.mark.parametrize(
    "text",
    [
        "class Net: pass",
        "from collections import OrderedDict as Net",
        "try:\n    from nowhere import Net\nexcept ImportError:\n    class Net: pass",
        "if True:\n    class Net: pass",
    ],
)
def test_a_class_is_reached_however_it_came_there(folder, text):
    name = f"module_{abs(hash(text))}"
    write(folder, name, text)
    assert isinstance(import_class(f"{name}:Net", frozenset()), type)


def test_packages_around_a_module_are_not_run_to_find_it(folder):
    (folder / "loud_package").mkdir()
    write(folder / "loud_package", "__init__", LOUD)
    write(folder / "loud_package", "quiet", "x = 1")
    with pytest.raises(ValueError, match="has no class Net"):
        import_class("loud_package.quiet:Net", frozenset())


def run(folder, *arguments, code=None, home=None):
    """Runs the command line in a folder, as the script that is installed or with -m."""
    program = (
        [sys.executable, "-m", "abcsearch", *arguments]
        if code is None
        else [sys.executable, "-c", code]
    )
    environment = {
        "PYTHONPATH": str(ROOT),
        "PATH": "/usr/bin:/bin",
        "HOME": home or str(folder / "home"),
    }
    return subprocess.run(
        program, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


PACKAGES = ["torch", "numpy", "typer", "rich", "json", "safetensors", "ray", "optuna"]
# What packages try to import, and do without
MISSING = ["dill", "pynvml", "scikits", "torchcomms", "cython", "lz4"]


def test_files_beside_the_user_do_not_stand_for_packages_and_their_own_module_counts_for_their_own_words(
    tmp_path,
):
    for name in (*PACKAGES, *MISSING):
        write(tmp_path, name, f"raise RuntimeError('the file {name} beside the user was imported')")
    done = run(tmp_path, "list", "models")
    assert done.returncode == 0, done.stderr
    assert "small_resnet" in done.stdout
    write(tmp_path, "mynet", "from abcsearch.models.resnet import SmallResNet as Net")
    done = run(tmp_path, "inspect", "mynet:Net", "--input", "1x8x8")
    assert done.returncode == 0, done.stderr


EXPORT = """
import sys; sys.path.append(".")
import torch, mynet
from abcsearch import export
export(mynet.Net(), "net", example_input=torch.zeros(1, 1, 8, 8), info={"data": {"name": "digits"}})
"""
NET = """
import pathlib
pathlib.Path("imported").touch()
from abcsearch.models.resnet import SmallResNet
class Net(SmallResNet): pass
"""


def test_a_module_beside_the_user_does_not_count_for_a_file_from_elsewhere(tmp_path):
    """As in a folder that somebody has sent: an export, and the module with its class."""
    write(tmp_path, "mynet", NET)
    assert run(tmp_path, code=EXPORT).returncode == 0
    (tmp_path / "imported").unlink()
    (tmp_path / "home").rename(tmp_path / "home-of-somebody-else")
    done = run(tmp_path, "evaluate", "net")
    assert done.returncode == 2
    assert "mynet:Net is not imported: mynet is not installed" in done.stderr
    assert "--trust" in done.stderr
    assert not (tmp_path / "imported").exists()
    done = run(tmp_path, "evaluate", "net", "--trust")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "imported").exists()


def test_a_name_of_ones_own_file_is_not_that_of_a_module_elsewhere(tmp_path):
    """Somebody sends a folder back as it was, and puts another module beside it."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "sent").mkdir()
    for folder in ("mine", "sent"):
        write(tmp_path / folder, "mynet", NET)
    environment = {"home": str(tmp_path)}
    assert run(tmp_path / "mine", code=EXPORT, **environment).returncode == 0
    (tmp_path / "mine" / "net").rename(tmp_path / "sent" / "net")
    done = run(tmp_path / "sent", "evaluate", "net", **environment)
    assert done.returncode == 2
    assert "there is no module mynet" in done.stderr
    assert not (tmp_path / "sent" / "imported").exists()
    # One's own
    assert run(tmp_path / "mine", "evaluate", "../sent/net", **environment).returncode == 0


def test_python_does_not_look_in_the_working_folder_for_such_a_file_either(tmp_path):
    write(tmp_path, "mynet", NET)
    assert run(tmp_path, code=EXPORT).returncode == 0
    (tmp_path / "imported").unlink()
    (tmp_path / "home").rename(tmp_path / "home-of-somebody-else")
    for how in ("import abcsearch", "import sys; sys.path.insert(0, '.'); import abcsearch"):
        done = run(tmp_path, code=f"{how}; abcsearch.load('net')")
        assert "mynet:Net is not imported: mynet is not installed" in done.stderr
        assert not (tmp_path / "imported").exists()
    # It is loaded already
    assert run(tmp_path, code=f"{how}; import mynet; abcsearch.load('net')").returncode == 0


@pytest.mark.parametrize(
    "path", ["loud:", "loud", ":Net", "loud:(x)", "loud: Net", "loud:Net,x", ".loud:Net"]
)
def test_what_is_no_import_path_imports_nothing(folder, path):
    write(folder, "loud", LOUD)
    with pytest.raises(ModelError, match="is no import path"):
        import_callable("model", path, ModelError)
    assert "loud" not in sys.modules


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("json:lods", "json has no 'lods'; did you mean 'json:loads'?"),
        (
            "json:JSONDecoder.decod",
            "json:JSONDecoder has no 'decod'; did you mean 'json:JSONDecoder.decode'?",
        ),
        ("json:zzzzzz", "json has no 'zzzzzz'; write package.module:name"),
    ],
)
def test_a_name_that_a_module_has_not_is_answered_with_the_nearest_that_it_has(path, words):
    with pytest.raises(ConfigError) as failed:
        import_named("criterion", path, ConfigError)
    assert str(failed.value) == f"criterion {path!r} cannot be imported: {words}"
