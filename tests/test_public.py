"""The public names, and what importing them costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import abcsearch

FIXED = (
    *(
        "Candidate",
        "Dimension",
        "SearchSpace",
        "trace_channels",
        "rank_channels",
        "slice_model",
        "Budget",
        "Trial",
    ),
    *(
        "Evaluation",
        "Searcher",
        "BeeColony",
        "RandomSearch",
        "make_searcher",
        "AdaptiveBN",
        "search",
        "resume",
    ),
    *(
        "SearchResult",
        "finetune",
        "export",
        "load",
        "AbcSearchError",
        "Evolution",
        "RegularizedEvolution",
        "Greedy",
    ),
    *(
        "NSGA2",
        "BeeColonyOfficial",
        "DDPG",
        "OptunaSearch",
        "ResponseSurface",
        "Tabular",
        "ShortTraining",
        "Cascade",
    ),
    *("Objective", "OBJECTIVES", "OUTPUTS", "Data", "Split", "Stream", "load_data"),
    *("train", "Lesson", "Supervised"),
    *("Source", "Sliced", "SlicedEvaluator", "ScoringOptions", "share", "gate", "Example"),
    *("Baseline", "BASELINES"),
)


def test_fixed_names_are_there():
    for name in FIXED:
        assert getattr(abcsearch, name).__doc__ or name == "Candidate"
        assert name in dir(abcsearch)


def test_names_for_type_checkers_are_the_names():
    tree = ast.parse(Path(abcsearch.__file__).read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    pairs = {(name.asname, node.module) for node in imports for name in node.names if name.asname}
    assert len(pairs) > len(FIXED)
    assert pairs == set(abcsearch._HOME.items())


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'Beecolony'"):
        _ = abcsearch.Beecolony


def test_importing_the_package_imports_nothing_heavy():
    heavy = ("torch", "torchvision", "sklearn", "numpy", "optuna")
    code = f"import sys, abcsearch; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_workers_import_is_little_more_than_torch():
    """Libraries that take seconds to import are imported where they are used."""
    slow = ("sklearn", "pandas", "optuna", "ray", "torchvision", "plotly", "matplotlib")
    code = f"import sys, abcsearch.runs.config_run; print([m for m in {slow} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_public_name_is_hidden_by_a_module_of_that_name():
    folder = Path(abcsearch.__file__).parent
    modules = {
        path.stem
        for path in folder.iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert not modules & set(abcsearch._HOME)
    code = "from abcsearch import load, export; import abcsearch.runs.config_run; print(callable(abcsearch.export))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"
