"""The table of the survey, in a tiny mode: rows are kept, drawn again from the file alone, and refused by others."""

import json
import re
import sys

import matplotlib.image
import pytest
import torch
from safetensors.torch import load_file

from abcsearch.errors import ConfigError
from experiments.survey import __main__ as survey
from experiments.survey import drawing, measuring
from experiments.survey.methods import CONTROLS, KINDS, METHODS, named
from experiments.survey.results import Results

TINY = [
    "model.widths=[4, 6]",
    "model.depths=[1, 1]",
    "n_trials=2",
    "pretrain.epochs=1",
    "finetune.epochs=2",
]
TINY += ["evaluator.calibration_images=128", "pretrain.batch_size=256", "finetune.batch_size=256"]
SOME = ["full", "uniform", "l1, threshold", "slimming"]


@pytest.fixture
def call(tmp_path, monkeypatch):
    """Calls the script with a small network and few epochs."""
    # Else seconds for each
    monkeypatch.setattr(measuring, "in_onnxruntime", lambda networks, example: networks)
    monkeypatch.setattr(survey, "check_onnx", lambda: None)

    def called(*words, tiny=TINY):
        places = [
            "--runs",
            str(tmp_path / "runs"),
            "--results",
            str(tmp_path),
            "--seeds",
            "0",
            "--budgets",
            "0.5",
        ]
        own = [word for setting in tiny for word in ("--set", setting)]
        monkeypatch.setattr(sys, "argv", ["survey", "digits", *places, *words, *own])
        survey.main()

    return called


def rows_of(path):
    return {row["method"]: row for row in json.loads((path / "digits.json").read_text())["rows"]}


def test_rows_are_kept_and_a_table_is_drawn_again_from_the_file_alone(
    call, tmp_path, capsys, monkeypatch
):
    (tmp_path / "README.md").write_text(
        "before\n<!-- digits -->\nearlier rows\n<!-- /digits -->\nafter\n"
    )
    call("--only", *SOME[:2])
    call("--only", *SOME, "iterate, threshold", "--times")
    printed, said = capsys.readouterr()
    assert said.count("%\n") == len(SOME)  # what was known has not been run again
    rows = rows_of(tmp_path)
    assert {sum(rows[name]["epochs"]) for name in SOME} == {2}
    assert rows["slimming"]["epochs"] == [1, 1]
    assert rows["full"]["macs"] == 1
    assert all(rows[name]["macs"] <= 0.5 and 0 <= rows[name]["after"] <= 1 for name in SOME[1:])
    assert all(rows[name]["training"] > 0 and rows[name]["forward"] > 0 for name in SOME)
    assert (
        "there are 2 epochs in all: raise finetune.epochs" in rows["iterate, threshold"]["skipped"]
    )
    monkeypatch.setattr(survey, "measured", None)
    monkeypatch.setattr(measuring, "run_config", None)
    page, picture = (tmp_path / "README.md").read_text(), (tmp_path / "digits.png").read_bytes()
    assert page.startswith("before\n<!-- digits -->\n**50% of the MACs**")
    assert page.endswith("<!-- /digits -->\nafter\n")
    assert "earlier rows" not in page
    assert "- not run: iterate, threshold: iterate, threshold trains 3 times" in page
    (tmp_path / "digits.png").unlink()
    call("--redraw")
    again = capsys.readouterr().out
    assert again in printed
    assert again.strip() in page
    assert (tmp_path / "README.md").read_text() == page
    assert (tmp_path / "digits.png").read_bytes() == picture
    assert matplotlib.image.imread(tmp_path / "digits.png").std() > 0.05


def test_a_call_that_is_killed_after_a_row_goes_on_with_the_next(call, tmp_path, monkeypatch):
    def killed(job):
        if job.method.name == "uniform":
            raise KeyboardInterrupt
        return real(job)

    real = survey.measured
    monkeypatch.setattr(survey, "measured", killed)
    with pytest.raises(KeyboardInterrupt):
        call("--only", "full", "uniform")
    first = rows_of(tmp_path)
    assert list(first) == ["full"]
    monkeypatch.setattr(survey, "measured", real)
    call("--only", "full", "uniform")
    assert rows_of(tmp_path)["full"] == first["full"]
    assert list(rows_of(tmp_path)) == ["full", "uniform"]


def test_rows_of_other_settings_versions_or_methods_are_refused_with_the_difference(call, tmp_path):
    call("--only", "full")
    with pytest.raises(SystemExit, match="no method 'unifrom'"):
        call("--only", "unifrom")
    file = tmp_path / "digits.json"
    with pytest.raises(SystemExit, match=r"settings\.finetune\.lr: 0.02 there, 0.01 now"):
        call("--only", "uniform", tiny=[*TINY, "finetune.lr=0.01"])
    held = json.loads(file.read_text())
    file.write_text(json.dumps({**held, "versions": "torch 1"}))
    with pytest.raises(SystemExit, match=r"versions: 'torch 1' there, .*--anew"):
        call("--only", "uniform")
    assert rows_of(tmp_path) == {row["method"]: row for row in held["rows"]}
    file.write_text(
        json.dumps({**held, "rows": [{**row, "changes": ["criterion=l2"]} for row in held["rows"]]})
    )
    with pytest.raises(SystemExit, match="full-50-0, run with criterion=l2, now searcher=given"):
        call("--only", "full")
    for damaged in (
        "{",
        '{"settings": {}, "versions": ""}',
        json.dumps({**held, "rows": [{"method": "full"}]}),
    ):
        file.write_text(damaged)
        with pytest.raises(SystemExit, match="is damaged"):
            call("--redraw")
    file.write_text(json.dumps({**held, "versions": "torch 1"}))
    call("--only", "full", "--anew", tiny=[*TINY, "finetune.lr=0.01"])  # in run folders of its own
    assert "skipped" not in rows_of(tmp_path)["full"]
    assert rows_of(tmp_path)["full"]["after"] != held["rows"][0]["after"]


def test_the_best_get_their_controls_whose_base_has_the_same_weights(call, tmp_path):
    call("--only", "uniform", "--controls")
    rows = rows_of(tmp_path)
    assert list(rows) == ["uniform", *(f"{control} of uniform" for control in CONTROLS)]
    assert {row["full"] for row in rows.values()} == {rows["uniform"]["full"]}
    assert {tuple(row["candidate"]) for name, row in rows.items() if name != "uniform"} == {
        tuple(rows["scratch_e of uniform"]["candidate"])
    }
    (base,) = (tmp_path / "runs/digits").glob("base-0*.safetensors")
    (own,) = (tmp_path / "runs/digits").glob("rewound_of_uniform*/base.safetensors")
    assert load_file(own).keys() == load_file(base).keys()
    assert all(
        torch.equal(tensor, load_file(base)[name]) for name, tensor in load_file(own).items()
    )
    assert rows["scratch_e of uniform"]["epochs"] == [0, 1]
    assert rows["scratch_b of uniform"]["epochs"] == [0, 2]


@pytest.mark.parametrize("network", survey.NETWORKS)
def test_every_method_that_is_registered_is_a_run_of_as_many_epochs(network, monkeypatch):
    monkeypatch.chdir(survey.HERE.parents[1])
    file = survey.HERE / f"{network}.toml"
    total = {
        sum_of(
            method.config(file, 0.3, 1, ["model.checkpoint=x"] if network == "resnet20" else []),
            method.rounds,
        )
        for method in METHODS
        if not method.lacking
    }
    assert total == {12 if network == "digits" else 4}
    assert len({method.name for method in METHODS}) == len(METHODS)
    assert {method.kind for method in METHODS} == {*KINDS[:5]}
    assert all(not method.lacking for method in METHODS if method.kind in KINDS[:3])
    assert named("rewound of SSL").kind == KINDS[5]
    with pytest.raises(ConfigError, match="no method"):
        named("rewound of nothing")


def sum_of(config, rounds):
    own = 0 if config.prepare is None else config.prepare.options["recipe"]["epochs"]
    return config.finetune.epochs + rounds * own


def test_the_best_three_are_those_of_most_seeds(tmp_path):
    def row(name, seed, after, **own):
        plain = {
            "method": name,
            "kind": KINDS[1],
            "budget": 0.5,
            "seed": seed,
            "after": after,
            "candidate": [ord(name[0])],
        }
        return {**plain, **own}

    rows = [
        row(name, seed, after)
        for name, after in zip("abcde", (0.9, 0.8, 0.7, 0.6, 1.0), strict=True)
        for seed in (0, 1)
    ]
    rows = [own for own in rows if (own["method"], own["seed"]) != ("e", 1)] + [
        row("f", 0, 1.0, skipped="no")
    ]
    rows += [row("full", seed, 1.0) for seed in (0, 1)]
    rows += [row("again", seed, 0.9) for seed in (0, 1)]  # the same networks as a
    assert drawing.best_three(rows, 0.5) == ["a", "b", "c"]
    assert drawing.best_three(rows, 0.3) == []
    assert Results(tmp_path / "none.json").rows == []


def test_cpu_seconds_are_added_up_over_stops(tmp_path):
    file = tmp_path / "seconds"
    for _ in range(2):
        clock = measuring.Clock(file)
        sum(range(200_000))
        clock("fine-tuning uniform", 1, 2, "")
        clock("base network", 1, 2, "")
        clock("search", 1, 2, "")
    held = json.loads(file.read_text())
    assert held["training"] > held["base"] > 0 < held["search"]
    assert held == measuring.Clock(file).seconds


def test_what_the_page_says_of_controls_is_true_of_the_rows():
    """Ranges over the structures of seed 0, at half the MACs and at 30 %; what is missing of today's best is said."""
    page = (survey.HERE / "README.md").read_text()
    said = page.partition("- **The controls**")[2].partition("\n- ")[0]
    rows = {
        (row["method"], row["budget"]): f"{100 * row['after']:.1f}"
        for row in Results(survey.HERE / "digits.json").rows
        if row["seed"] == 0 and "skipped" not in row
    }
    ranges = []
    for control in ("scratch_e", "fine-tuned", "scratch_b", "rewound"):
        for budget in (0.5, 0.3):
            mine = [name for name, of in rows if of == budget and f"{control} of " in name]
            if control == "fine-tuned":
                mine = {name.partition(" of ")[2] for name, of in rows if of == budget} - {""}
            shares = sorted(rows[name, budget] for name in mine)
            ranges.append((shares[0], shares[-1]))
    assert re.findall(r"(\d+\.\d) to (\d+\.\d)", said) == ranges
    every = Results(survey.HERE / "digits.json").rows
    missing = [
        name
        for budget in (0.5, 0.3)
        for name in drawing.best_three(every, budget)
        if not all((f"{control} of {name}", budget) in rows for control in CONTROLS)
    ]
    assert bool(missing) == ("not run yet" in said), missing
