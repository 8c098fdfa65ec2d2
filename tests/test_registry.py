"""Every kind of part is named alike: by name, by import path, or by the thing itself."""

import functools
import itertools
import pickle
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch

from abcsearch import Recipe
from abcsearch.baselines.registry import BASELINES, Baseline
from abcsearch.channels.criteria import CRITERIA, Criterion
from abcsearch.channels.groups import trace_channels
from abcsearch.channels.ranking import rank_channels
from abcsearch.config import parse_config
from abcsearch.data.registry import DATASETS, load_data
from abcsearch.errors import AbcSearchError, RankingError, SearcherError
from abcsearch.evaluation.registry import EVALUATORS, EvaluatorEntry
from abcsearch.models.registry import MODELS
from abcsearch.registry import OBJECT, Home, Registry, import_path
from abcsearch.searchers.base import Searcher
from abcsearch.searchers.registry import SEARCHERS, SearcherEntry, make_searcher
from abcsearch.space import Dimension, SearchSpace
from abcsearch.training.objectives import METRICS, OBJECTIVES, Objective
from abcsearch.training.recipe import PRESETS, Preset

OWN = """
from abcsearch import Recipe
from abcsearch.channels.criteria import CRITERIA, Criterion
from abcsearch.data.registry import DATASETS
from abcsearch.models.registry import MODELS
from abcsearch.searchers.random_search import RandomSearch
from abcsearch.searchers.registry import SEARCHERS
from abcsearch.searchers.base import Searcher
from abcsearch.training.objectives import METRICS, OBJECTIVES, Objective
from abcsearch.models.resnet import SmallResNet
from abcsearch.data.digits import digits
from abcsearch.channels.criteria import l2

SLOW = Recipe(epochs=3)
ANGLES = Objective(loss=max, metrics={})


class Largest(Criterion):
    def scores(self, subject):
        return [l2(subject.tensors, group) for group in subject.graph.prunable]


def everything(subject):
    return Largest().scores(subject)


def group_by_group(tensors, group):
    return l2(tensors, group)


def net(**options):
    return SmallResNet(**options)


def data(seed=0):
    return digits(seed=seed)


class Walk(RandomSearch):
    \"\"\"Random draws under another name.\"\"\"


def walk(space, constraint, *, seed, initial, fill=True):
    return RandomSearch(space, constraint, seed=seed, initial=initial, options=RandomSearch.Options(fill=fill))


def fitness(source, data, scale=1):
    return lambda candidate, seed: None


def least(outputs, labels):
    return outputs.amin(dim=1)


def widest(task):
    return task.space.full


def register():
    MODELS["mine"], DATASETS["my data"], SEARCHERS["my walk"], CRITERIA["largest"] = net, data, walk, Largest
    METRICS["least"], OBJECTIVES["angles"] = least, ANGLES
"""
REGISTRIES = {
    "searchers": (SEARCHERS, "Walk", "bee_colny", "bee_colony"),
    "evaluators": (EVALUATORS, "fitness", "adaptive_nb", "adaptive_bn"),
    "criteria": (CRITERIA, "Largest", "taylr", "taylor"),
    "models": (MODELS, "net", "smal_resnet", "small_resnet"),
    "datasets": (DATASETS, "data", "digit", "digits"),
    "recipes": (PRESETS, "SLOW", "cifra", "cifar"),
    "metrics": (METRICS, "least", "pixel_acuracy", "pixel_accuracy"),
    "baselines": (BASELINES, "widest", "unifrom", "uniform"),
    "objectives": (OBJECTIVES, "ANGLES", "regresion", "regression"),
}
KINDS = {
    "searcher": SearcherEntry,
    "evaluator": EvaluatorEntry,
    "criterion": Criterion,
    "model": Callable,
    "data set": Callable,
    "preset": Preset,
    "metric": Callable,
    "objective": Objective,
    "baseline": Baseline,
}
everyone = pytest.mark.parametrize(
    ("registry", "name", "typo", "meant"), REGISTRIES.values(), ids=REGISTRIES
)


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The user's module, which registers nothing by itself; what tests add is gone afterwards."""
    (tmp_path / "parts_of_mine.py").write_text(OWN)
    (tmp_path / "parts_that_break.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    for registry, *_ in REGISTRIES.values():
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
        monkeypatch.setattr(registry, "_objects", {})
    yield "parts_of_mine"
    sys.modules.pop("parts_of_mine", None)


def said(registry, named):
    with pytest.raises(AbcSearchError) as caught:
        registry.find(named)
    assert type(caught.value) is registry.error
    return str(caught.value)


@everyone
def test_a_typo_is_answered_with_the_nearest_name(registry, name, typo, meant):
    words = said(registry, typo)
    assert words.startswith(f"unknown {registry.kind} {typo!r}; did you mean {meant!r}?")
    assert "package.module:" in words


@everyone
def test_an_entry_is_there_under_its_name_its_path_and_itself(registry, name, typo, meant, own):
    __import__(own)
    thing = getattr(sys.modules[own], name)
    registry["mine, too"] = thing
    found = [registry.find("mine, too"), registry.find(f"{own}:{name}"), registry.find(thing)]
    assert len({*map(type, found)}) == 1
    assert isinstance(found[0], KINDS[registry.kind])
    assert registry["mine, too"] is thing
    assert registry.added() == {"mine, too": thing}
    del registry["mine, too"]
    assert registry.added() == {}
    assert "mine, too" not in registry


@everyone
def test_a_name_is_given_once(registry, name, typo, meant, own):
    __import__(own)
    thing = getattr(sys.modules[own], name)
    for _ in range(2):  # the same thing may come again, as where a module is reloaded
        registry.register("mine", thing)
    before = registry[meant]
    with pytest.raises(registry.error, match=f"{registry.kind} '{meant}' is registered already"):
        registry.register(meant, thing)
    with pytest.raises(registry.error, match="a text without ':'"):
        registry.register("a:b", thing)
    assert registry[meant] is before
    assert list(registry.added()) == ["mine"]


@everyone
def test_import_paths_that_lead_nowhere_are_said(registry, name, typo, meant, own):
    assert "no module no_such_package" in said(registry, "no_such_package:thing")
    assert "ZeroDivisionError" in said(registry, f"parts_that_break:{name}")
    assert f"{own} has no 'nothing'" in said(registry, f"{own}:nothing")
    assert f"did you mean '{own}:{name}'?" in said(registry, f"{own}:{name}x")
    assert "import path" in said(registry, f"{own}:")


@everyone
def test_another_kind_of_thing_is_refused(registry, name, typo, meant):
    words = said(registry, "os:sep")
    assert "'os:sep'" in words
    assert "'/'" in words


@everyone
def test_names_are_listed_and_looked_up_without_importing_what_they_stand_for(
    registry, name, typo, meant
):
    assert meant in registry
    assert typo not in registry
    assert 5 not in registry
    assert ["unhashable"] not in registry
    assert len(registry) == len([*registry]) == len(registry.homes)


@everyone
def test_another_process_has_its_own_registry(registry, name, typo, meant):
    assert pickle.loads(pickle.dumps(registry)) is registry


@everyone
def test_what_comes_with_the_package_can_be_put_back(registry, name, typo, meant, own):
    before = registry[meant]
    registry[meant] = None
    assert list(registry.added()) == [meant]
    registry[meant] = before
    assert registry.added() == {}


def test_what_cannot_be_imported_is_known_in_this_process_only():
    registry = Registry("thing", f"{__name__}:nowhere", {}, error=SearcherError)
    assert registry.name_of("name") == "name"
    assert registry.name_of(trace_channels) == "abcsearch.channels.groups:trace_channels"
    assert import_path(Home.value) is None

    def inner():
        return 5

    for thing in (inner, lambda: 5, functools.partial(int, "5")):
        name = registry.name_of(thing)
        assert name.endswith(OBJECT)
        assert registry.find(name) is thing
    with pytest.raises(
        SearcherError, match=r"'gone \(object\)' was passed in Python.*pass it again"
    ):
        registry.find(f"gone{OBJECT}")


def orders(ranking):
    return [order.tolist() for order in ranking.orders]


def test_criteria_of_all_kinds_give_the_same_ranking(own, tiny_model, tiny_data):
    graph = trace_channels(tiny_model, tiny_data.example)
    mine = __import__(own)
    expected = orders(rank_channels(tiny_model, graph, "l2"))
    for criterion in (mine.Largest, mine.Largest(), mine.everything, mine.group_by_group):
        assert orders(rank_channels(tiny_model, graph, criterion)) == expected
    for name in ("Largest", "everything", "group_by_group"):
        ranking = rank_channels(tiny_model, graph, f"{own}:{name}")
        assert (orders(ranking), ranking.criterion) == (expected, f"{own}:{name}")
        assert rank_channels(tiny_model, graph, getattr(mine, name)).criterion == ranking.criterion
    seen = []
    with pytest.raises(
        RankingError, match=r"a list with the scores of each of the \d+ prunable groups"
    ):
        rank_channels(tiny_model, graph, lambda subject: seen.append(subject.data), data=5)
    assert seen == [5]
    for wrong in (lambda: None, lambda a, b, c: None, Criterion, 5):
        with pytest.raises(RankingError, match="a function of the subject"):
            rank_channels(tiny_model, graph, wrong)


def test_searchers_by_path_propose_as_by_name(own):
    space = SearchSpace(tuple(Dimension(name, "width", (2, 4, 6, 8)) for name in "abcd"))
    mine = __import__(own)
    named = make_searcher("random", space, seed=3, fill=False).ask(5)
    for made in (f"{own}:Walk", f"{own}:walk", mine.Walk, mine.walk):
        assert make_searcher(made, space, seed=3, fill=False).ask(5) == named
    with pytest.raises(SearcherError, match="did you mean 'fill'"):
        make_searcher(f"{own}:Walk", space, fil=False)
    with pytest.raises(SearcherError, match="'fil'"):
        make_searcher(f"{own}:walk", space, fil=False)
    with pytest.raises(SearcherError, match="returned int, expected a new Searcher"):
        make_searcher(lambda space, constraint, **options: 5, space)
    for wrong in (Searcher, int, f"{own}:Largest"):
        with pytest.raises(SearcherError, match="a subclass of Searcher with _propose and _learn"):
            make_searcher(wrong, space)


def test_data_by_their_function(own):
    mine = __import__(own)
    assert torch.equal(
        load_data(mine.data, seed=1).train.images, load_data("digits", seed=1).train.images
    )


def test_recipes_and_objectives_by_path_or_from_a_function(own):
    assert PRESETS.find(f"{own}:SLOW").recipe == Recipe(epochs=3)
    assert PRESETS.find(lambda: Recipe(epochs=3)).recipe == Recipe(epochs=3)
    mine = Objective(loss=np.add, metrics={})
    assert OBJECTIVES.find(lambda: mine) is mine


PLAIN = {
    "model": {"name": "mine", "widths": [4, 6]},
    "data": {"name": "parts_of_mine_registering:digits"},
    "criterion": "largest",
    "searcher": {"name": "my walk", "fill": False},
    "evaluator": {"name": "adaptive_bn", "metric": "least"},
    "budget": {"macs": 0.5},
    "n_trials": 4,
    "pretrain": {"preset": "parts_of_mine:SLOW"},
}


@pytest.mark.parametrize("path", ["model", "data", "evaluator", "searcher"])
def test_what_a_module_registers_is_known_wherever_its_table_stands(own, tmp_path, path):
    """All orders of tables: one names a module of the user's, the others what that registers."""
    lines = "from abcsearch.data.digits import digits\nimport parts_of_mine\n"
    lines += "from parts_of_mine import *\nparts_of_mine.register()\n"
    (tmp_path / "parts_of_mine_registering.py").write_text(lines)
    names = {"model": "net", "data": "digits", "evaluator": "fitness", "searcher": "Walk"}
    plain = {
        **PLAIN,
        "data": {"name": "my data"},
        path: {"name": f"parts_of_mine_registering:{names[path]}"},
    }
    first = None
    try:
        for order in itertools.permutations(
            ("model", "data", "criterion", "searcher", "evaluator")
        ):
            for registry, *_ in REGISTRIES.values():
                for name in registry.added():
                    del registry[name]
            sys.modules.pop("parts_of_mine_registering", None)
            found = parse_config({**{key: plain[key] for key in order}, **plain})
            assert first is None or found == first
            first = found
    finally:
        sys.modules.pop("parts_of_mine_registering", None)
    assert found.criterion == "largest"
    assert found.pretrain == Recipe(epochs=3)
