"""Config files: what they mean, and every mistake in them at once."""

import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import get_type_hints

import pytest

from abcsearch import config
from abcsearch.budget import Budget
from abcsearch.config import parse_config, parse_recipe, read_config
from abcsearch.errors import AbcSearchError, ConfigError
from abcsearch.runs.settings import ModelSettings, Part, RunConfig, SpaceOptions
from abcsearch.training.recipe import Recipe

EXPERIMENTS = Path(__file__).parents[1] / "experiments"

SMALL = """
n_trials = 7
[model]
name = "small_resnet"
widths = [4, 6]
depths = [1, 1]
checkpoint = "w.safetensors"
[data]
name = "digits"
[budget]
macs = 0.5
"""


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(SMALL)
    return path


def mistakes(plain, *words):
    with pytest.raises(ConfigError) as caught:
        parse_config(plain, "here.toml")
    first, *lines = str(caught.value).split("\n")
    assert first == f"here.toml has {len(lines)} mistake(s):"
    assert all(line.startswith("  - ") for line in lines)
    for word in words:
        assert any(word in line for line in lines), (word, lines)
    assert len(lines) == len(words), lines


def plain(**changes):
    base = {
        "n_trials": 7,
        "model": {"name": "small_resnet", "checkpoint": "w.pth"},
        "data": {"name": "digits"},
        "budget": {"macs": 0.5},
    }
    return {**copy.deepcopy(base), **changes}


@pytest.mark.parametrize(
    "path", sorted(EXPERIMENTS.rglob("config*.toml")), ids=lambda path: path.parent.name
)
def test_every_config_of_the_experiments_parses_and_its_network_is_built(path):
    config = read_config(path)
    assert isinstance(config, RunConfig)
    config.model.build()


def test_there_are_experiments():
    assert list(EXPERIMENTS.rglob("config*.toml"))


def test_a_small_config_and_its_defaults(small):
    assert read_config(small) == RunConfig(
        n_trials=7,
        model=ModelSettings(
            name="small_resnet",
            options={"widths": [4, 6], "depths": [1, 1]},
            checkpoint=str(Path("w.safetensors").absolute()),
        ),
        data=Part(name="digits"),
        budget=Budget(macs=0.5),
        searcher=Part(name="response_surface"),
        evaluator=Part(name="adaptive_bn"),
        finetune=Recipe(lr=0.02),
    )


def test_every_setting_arrives(tmp_path):
    (tmp_path / "c.toml").write_text("""
seed = 3
n_trials = 5
criterion = "bn_gamma"
max_failures = 0
baselines = ["random", "uniform"]
evaluator = "adaptive_bn"
model = { name = "torch.nn:Linear", in_features = 2, out_features = 3 }
data = { name = "image_folder", path = "x", size = 32 }
[pretrain]
epochs = 2
lr = 1
flip = true
[budget]
macs = [0.4, 0.5]
params = 1000
flops = 1
[space]
alpha = 1
levels = ["filter"]
divisor = 8
fixed = ["a.b"]
[searcher]
name = "bee_colony"
n_sources = 4
[finetune]
epochs = 1
""")
    config = read_config(tmp_path / "c.toml")
    assert config == RunConfig(
        seed=3,
        n_trials=5,
        criterion="bn_gamma",
        max_failures=0,
        baselines=("random", "uniform"),
        model=ModelSettings(name="torch.nn:Linear", options={"in_features": 2, "out_features": 3}),
        data=Part(name="image_folder", options={"path": str(Path("x").absolute()), "size": 32}),
        pretrain=Recipe(epochs=2, lr=1.0, flip=True),
        budget=Budget(macs=(0.4, 0.5), params=1000, flops=1),
        space=SpaceOptions(alpha=1.0, levels=("filter",), divisor=8, fixed=("a.b",)),
        searcher=Part(name="bee_colony", options={"n_sources": 4}),
        finetune=Recipe(epochs=1),
    )
    assert isinstance(config.pretrain.lr, float)
    assert isinstance(config.space.levels, tuple)
    assert isinstance(config.budget.macs, tuple)


@pytest.mark.parametrize(
    ("macs", "kind"),
    [(0.5, float), (1.0, float), (1, int), (10**9, int), ([100, 200], tuple), ([0.4, 0.5], tuple)],
)
def test_a_budget_is_a_share_or_an_absolute_number_by_its_type(macs, kind):
    found = parse_config(plain(budget={"macs": macs})).budget.macs
    assert type(found) is kind
    assert found == (tuple(macs) if kind is tuple else macs)
    if kind is tuple:
        assert [type(value) for value in found] == [type(value) for value in macs]


def test_all_mistakes_are_listed_at_once_with_the_nearest_valid_names():
    mistakes(
        {
            "n_trial": 5,
            "n_trials": 0,
            "seed": "zero",
            "criterion": "bn_gama",
            "max_failures": -1,
            "baselines": ["uniform", "randon"],
            "model": {"name": "small_resnet", "width": [4], "dephts": [1]},
            "data": {"name": "digits", "validaton": 0.2, "sed": 1},
            "pretrain": {"epoch": 3, "lr": "fast", "flip": 1},
            "budget": {"mac": 0.5, "params": "few"},
            "space": {"alfa": 0.5, "levels": ["filter", "stages"], "divisor": 1.5},
            "searcher": {"name": "bee_colony", "n_source": 4, "abandonment_limit": 2.5},
            "evaluator": {"name": "adaptive_bm"},
            "finetune": {"epochs": 0, "shift": -1},
        },
        "unknown setting 'n_trial'; did you mean 'n_trials'",
        "n_trials is at least 1, found 0",
        "seed = 'zero': input should be a valid integer",
        "unknown criterion 'bn_gama'; did you mean 'bn_gamma'",
        "max_failures is at least 0, found -1",
        "unknown baseline 'randon'; did you mean 'random'",
        "model 'small_resnet': unknown option 'width'; did you mean 'widths'",
        "model 'small_resnet': unknown option 'dephts'; did you mean 'depths'",
        "data set 'digits': unknown option 'validaton'; did you mean 'validation'",
        "data set 'digits': unknown option 'sed'; did you mean 'seed'",
        "unknown setting in [pretrain]: 'epoch'; did you mean 'epochs'",
        "pretrain.lr = 'fast': input should be a valid number",
        "pretrain.flip = 1: input should be a valid boolean",
        "unknown setting in [budget]: 'mac'; did you mean 'macs'",
        "budget.params = 'few'",
        "unknown setting in [space]: 'alfa'; did you mean 'alpha'",
        "space.levels = ['filter', 'stages']: input should be 'filter', 'stage' or 'block'",
        "space.divisor = 1.5: input should be a valid integer",
        "unknown setting in [searcher]: 'n_source'; did you mean 'n_sources'",
        "searcher.abandonment_limit = 2.5: input should be a valid integer",
        "unknown evaluator 'adaptive_bm'; did you mean 'adaptive_bn'",
        "training recipe: epochs is at least 1, found 0; shift is at least 0, found -1",
    )


def test_mistakes_of_warm_starts_are_among_the_others():
    mistakes(
        plain(
            n_trials=0,
            searcher={
                "name": "bee_colony",
                "n_source": 4,
                "initial": [0.5, 0, 1.5, [12, 30.5], [8, 4], "0.7", True],
            },
        ),
        "n_trials is at least 1",
        "did you mean 'n_sources'",
        *(
            f"searcher.initial[{i}] = {found}: a warm st"
            for i, found in ((1, 0), (2, 1.5), (3, "[12, 30.5]"))
        ),
        "searcher.initial[5] = '0.7'",
        "searcher.initial[6] = True",
    )
    mistakes(
        plain(searcher={"name": "random", "initial": 0.7}),
        "searcher.initial is a list of structures and keep ratios",
    )
    mistakes(
        plain(searcher={"name": "random", "initial": [9, 14, 9]}), "searcher.initial = [[9, 14, 9]]"
    )
    sources = {"name": "bee_colony", "n_sources": 1, "initial": [2.5]}
    mistakes(plain(searcher=sources), "n_sources is from 2", "searcher.initial[0] = 2.5")
    good = [0.7, 1, [12, 30, 1]]
    assert parse_config(plain(searcher={"name": "random", "initial": good})).searcher.options == {
        "initial": good
    }


def test_what_is_missing_is_listed():
    missing = [f"setting '{name}' is missing" for name in ("n_trials", "model", "data", "budget")]
    mistakes({}, *missing)
    mistakes({"seeds": 1}, "did you mean 'seed'", *missing)
    mistakes(
        plain(model={"checkpoint": "x"}, data={"path": "x"}),
        "[model] needs a name",
        "[data] needs a name",
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"model": {"name": "small_resnet"}},
            "set model.checkpoint or the table [pretrain], found neither",
        ),
        ({"pretrain": {"epochs": 2}}, "set model.checkpoint or the table [pretrain], found both"),
        ({"model": 5}, "[model] is a table, found 5"),
        (
            {"model": {"name": "small_resnet", "checkpoint": 5}},
            "model.checkpoint is a path, found 5",
        ),
        (
            {"model": {"name": "torch.nn:Linear", "checkpoint": "x"}},
            "option missing: in_features, out_features",
        ),
        ({"budget": 0.5}, "[budget] is a table, found 0.5"),
        ({"budget": {}}, "a budget needs at least one bound"),
        ({"budget": {"macs": [0.5, 0.4]}}, "0.5"),
        ({"budget": {"macs": [0.1, 0.2, 0.3]}}, "budget.macs = [0.1, 0.2, 0.3]: "),
        ({"budget": {"macs": 1.5}}, "1.5"),
        ({"budget": {"macs": True}}, "budget.macs = True"),
        ({"searcher": "bee_colny"}, "unknown searcher 'bee_colny'; did you mean 'bee_colony'"),
        (
            {"searcher": {"name": "random", "n_sources": 3}},
            "unknown setting in [searcher]: 'n_sources'; choose one of: fill",
        ),
        (
            {"searcher": {"name": "bee_colony", "n_sources": 1}},
            "n_sources is from 2 to 10000, found 1",
        ),
        ({"evaluator": {"name": "adaptive_bn", "metric": "top2"}}, "unknown metric 'top2'"),
        ({"space": {"levels": "filter"}}, "space.levels = 'filter': input should be a valid list"),
        ({"n_trials": 5.0}, "n_trials = 5.0: input should be a valid integer"),
        ({"n_trials": True}, "n_trials = True: input should be a valid integer"),
        (
            {"criterion": 5},
            "criterion = 5: input should be a valid list, or input should be a valid string",
        ),
        (
            {"criterion": []},
            "criterion is a name, or a list of those that every layer chooses from: the list is empty",
        ),
        ({"criterion": ["l1", "l1"]}, "'l1' is there 2 times, once is enough"),
        ({"criterion": ["l1", "taylr"]}, "unknown criterion 'taylr'; did you mean 'taylor'"),
        (
            {"criterion": ["l1", {"name": "l2"}]},
            "criterion = ['l1', {'name': 'l2'}]: input should be a valid string",
        ),
        ({"data": {"name": "digit"}}, "unknown data set 'digit'; did you mean 'digits'"),
        ({"data": {"name": "image_folder"}}, "option missing: path"),
    ],
)
def test_one_mistake_is_one_line(changes, words):
    mistakes(plain(**changes), words)


def test_a_mistake_in_one_place_does_not_hide_that_there_is_no_trained_network():
    mistakes(plain(model="small_resnet", seed=-1), "found neither", "seed is at least 0, found -1")
    # A [pretrain] with a mistake in it is there all the same.
    mistakes(plain(model="small_resnet", pretrain={"epochs": "x"}), "pretrain.epochs = 'x'")


def test_a_file_that_is_missing_a_folder_or_not_toml_is_named(tmp_path):
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(
            ConfigError, match=rf"config {path} cannot be read: .*; give the path of a TOML file"
        ):
            read_config(path)
    (tmp_path / "bad.toml").write_text("n_trials = = 5")
    with pytest.raises(ConfigError, match=r"bad\.toml is not TOML: .*line 1"):
        read_config(tmp_path / "bad.toml")
    (tmp_path / "bad.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"bad\.toml is not TOML"):
        read_config(tmp_path / "bad.toml")
    (tmp_path / "bad.toml").write_text("x = 1")
    with pytest.raises(ConfigError, match=r"bad\.toml has 5 mistake"):
        read_config(tmp_path / "bad.toml")


def test_a_byte_order_mark_is_no_mistake(small):
    expected = read_config(small)
    small.write_text(SMALL, encoding="utf-8-sig")
    assert read_config(small) == expected


@pytest.mark.parametrize(
    ("override", "changes"),
    [
        ("n_trials=9", {"n_trials": 9}),
        (" n_trials = 9 ", {"n_trials": 9}),
        ("budget.macs=0.25", {"budget": Budget(macs=0.25)}),
        ("budget.macs=[0.2, 0.3]", {"budget": Budget(macs=(0.2, 0.3))}),
        ("budget.params=1000", {"budget": Budget(macs=0.5, params=1000)}),
        ("space.alpha=0.7", {"space": SpaceOptions(alpha=0.7)}),
        ("space={alpha = 0.7}", {"space": SpaceOptions(alpha=0.7)}),
        ('space.fixed=["a"]', {"space": SpaceOptions(fixed=("a",))}),
        ("criterion=l2", {"criterion": "l2"}),
        ('criterion=["l2"]', {"criterion": "l2"}),
        ('criterion=["l2", "taylor"]', {"criterion": ("l2", "taylor")}),
        ('criterion="l2"', {"criterion": "l2"}),
        ("searcher=random", {"searcher": Part(name="random")}),
        ("searcher.name=random", {"searcher": Part(name="random")}),
        ("evaluator.metric=neg_loss", None),
        ("model.checkpoint=runs/a b=c.pth", None),
        ("baselines=[]", {"baselines": ()}),
        ("finetune.flip=true", {"finetune": dataclasses.replace(Recipe(), flip=True)}),
    ],
)
def test_one_override_changes_one_setting(small, override, changes):
    before = read_config(small)
    if override.startswith("evaluator"):
        found = read_config(small, ["evaluator=adaptive_bn", override])
        changes = {"evaluator": Part(name="adaptive_bn", options={"metric": "neg_loss"})}
    else:
        found = read_config(small, [override])
    if changes is None:
        changes = {
            "model": dataclasses.replace(
                before.model, checkpoint=str(Path("runs/a b=c.pth").absolute())
            )
        }
    assert found == dataclasses.replace(before, **changes)


def test_the_last_override_wins_and_together_they_work(small):
    found = read_config(small, ["seed=1", "searcher=bee_colony", "searcher.n_sources=3", "seed=2"])
    assert (found.seed, found.searcher) == (
        2,
        Part(name="bee_colony", options={"n_sources": 3, "guide": 1.5}),
    )


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("n_trials", "takes dotted.key=value, found 'n_trials'"),
        ("=5", "takes dotted.key=value, found '=5'"),
        ("n_trials.x=5", "n_trials is not a table"),
        ("model.widths.x=5", "widths is not a table"),
        ("n_trials=", "n_trials = ''"),
        ("n_trials=many", "n_trials = 'many': input should be a valid integer"),
        ("sede=5", "unknown setting 'sede'; did you mean 'seed'"),
        ("space.alfa=0.5", "did you mean 'alpha'"),
        ("spaces.alpha=0.5", "unknown setting 'spaces'; did you mean 'space'"),
    ],
)
def test_a_wrong_override_is_named(small, override, words):
    with pytest.raises(ConfigError) as caught:
        read_config(small, [override])
    assert words in str(caught.value)


def test_a_mistake_names_the_overrides_it_may_come_from(small):
    with pytest.raises(ConfigError) as caught:
        read_config(small, ["evaluator.name=adaptive_bn", "evaluator.calibration_images=64"])
    assert str(caught.value).split("\n") == [
        f"{small} with --set evaluator.name=adaptive_bn --set evaluator.calibration_images=64 has 1 mistake(s):",
        "  - [evaluator]: calibration_images is at least one batch, batch_size = 128, found 64",
    ]


def test_recipes_are_changed_field_by_field():
    recipe = Recipe(epochs=3, lr=0.5)
    assert parse_recipe([], recipe) == recipe
    changed = dataclasses.replace(recipe, epochs=5, flip=True)
    assert parse_recipe(["epochs=5", "finetune.flip=true"], recipe) == changed
    for override, words in [
        ("epoch=5", "did you mean 'epochs'"),
        ("epochs=five", "finetune.epochs = 'five'"),
        ("epochs=0", "epochs is at least 1, found 0"),
        ("epochs", "found 'epochs'"),
        ("pretrain.epochs=5", "unknown setting in [finetune]: 'pretrain'"),
    ]:
        with pytest.raises(AbcSearchError) as caught:
            parse_recipe([override], recipe)
        assert words in str(caught.value)


def tables():
    """Every table of a config, and every option of a part that is one."""
    known = [
        name
        for name, kind in get_type_hints(RunConfig).items()
        if name not in ("model", "data", *config._PARTS)
    ]
    yield from (name for name in known if name in (*config._SECTIONS, *config._RECIPES))
    for key, (registry, _) in config._PARTS.items():
        for name in registry:
            options = registry[name].options
            hints = get_type_hints(options) if options is not None else {}
            for option, hint in hints.items():
                if getattr(hint, "__origin__", hint) in (dict, Mapping) or dataclasses.is_dataclass(
                    hint
                ):
                    yield f"{key}.{option} of {name}"


@pytest.mark.parametrize("table", list(tables()))
@pytest.mark.parametrize("word", ["digits", 3])
def test_a_word_where_a_table_belongs_is_told_in_our_words(table, word):
    key, _, name = table.partition(" of ")
    part, _, option = key.partition(".")
    values = {part: {"name": name, option: word}} if option else {part: word}
    with pytest.raises(ConfigError) as failed:
        parse_config(plain(**values))
    assert f"[{key}] is a table, found {word!r}" in str(failed.value)
    assert "dictionary" not in str(failed.value)
    named = (word == "digits" and part in config._RECIPES) or (option, word) == ("recipe", "digits")
    assert ('preset = "digits"' in str(failed.value)) == named


def test_tables_of_parts_are_among_those():
    assert {"prepare.recipe of slimming", "finetune", "budget"} <= set(tables())


def test_a_baseline_is_there_once():
    mistakes(
        {**plain(), "baselines": ["uniform", "random", "uniform"]},
        "'uniform' is there 2 times, once is enough",
    )
