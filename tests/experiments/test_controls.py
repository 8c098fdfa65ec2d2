"""The comparison of the winner with its controls, in a tiny mode: rows are kept, a stopped call goes on."""

import json

import pytest

from abcsearch.config import read_config
from experiments.controls import __main__ as controls
from experiments.controls.arms import ARMS, NEW_WEIGHTS, WINNER
from experiments.survey.results import Results

TINY = {
    "digits": ["model.widths=[4, 6]", "model.depths=[1, 1]", "pretrain.batch_size=256"],
    "resnet20": [
        "evaluator.validation_images=10",
        "pretrain.batch_size=50",
        "finetune.batch_size=50",
        "data.validation=0.2",
    ],
}
FEW = ["n_trials=2", "evaluator.calibration_images=64", "evaluator.batch_size=32"]


@pytest.fixture
def call(tmp_path):
    def called(network, *words, seeds=("0",), more=()):
        epochs = 3 if network == "resnet20" else 1
        changes = [*FEW, *TINY[network], f"pretrain.epochs={epochs}", "finetune.epochs=1", *more]
        given = [word for change in changes for word in ("--set", change)]
        places = ["--runs", str(tmp_path / "runs"), "--results", str(tmp_path)]
        controls.main([network, *places, "--seeds", *seeds, *words, *given])

    return called


def test_every_arm_is_a_row_and_a_stopped_call_goes_on(call, tmp_path, monkeypatch, capsys):
    """Stopped in the middle of a seed: what is known stays, the rest comes to the same as in one go."""
    (tmp_path / "README.md").write_text(
        "before\n<!-- digits -->\nold\n<!-- end of digits -->\nafter\n"
    )
    tuned, left = controls.finetune_run, [3]

    def stopping(*words, **more):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return tuned(*words, **more)

    monkeypatch.setattr(controls, "finetune_run", stopping)
    with pytest.raises(KeyboardInterrupt):
        call("digits")
    file = tmp_path / "digits.json"
    some = json.loads(file.read_text())["rows"]
    assert len(some) == 3
    monkeypatch.setattr(controls, "finetune_run", tuned)
    call("digits")
    rows = {row["method"]: row for row in json.loads(file.read_text())["rows"]}
    assert list(rows) == [
        *(row["method"] for row in some),
        *(n for n in rows if n not in {r["method"] for r in some}),
    ]
    assert set(rows) == set(ARMS)
    assert all(rows[row["method"]]["after"] == row["after"] for row in some)
    same = [rows[name]["candidate"] for name in (WINNER, "random_channels", *NEW_WEIGHTS)]
    assert all(candidate == same[0] for candidate in same)
    assert rows["random_structure"]["candidate"] != same[0]
    assert all(row["macs"] <= 0.5 for name, row in rows.items() if name != "full")
    assert rows["scratch_b"]["epochs"] == 2 * rows["scratch_e"]["epochs"] == 2
    # Nothing is run again, and the table follows from the file alone
    monkeypatch.setattr(controls, "run_config", None)
    call("digits")
    call("digits", "--redraw")
    shown = (tmp_path / "README.md").read_text()
    assert "old" not in shown
    assert shown.startswith("before\n<!-- digits -->\n| network |")
    assert shown.endswith("\n<!-- end of digits -->\nafter\n")
    winner = next(line for line in shown.splitlines() if line.startswith("| winner |"))
    assert f"{100 * rows[WINNER]['after']:.1f} [" in winner
    with pytest.raises(SystemExit, match=r"settings\.finetune\.lr: 0.02 there, 0.01 now"):
        call("digits", more=["finetune.lr=0.01"])
    capsys.readouterr()


def test_differences_are_those_of_the_same_seeds():
    def row(name, seed, after):
        return {
            "method": name, "seed": seed, "after": after, "before": 0.5, "macs": 0.5, "images": 100,
            "epochs": 10, "base_epochs": 20,
        }  # fmt: skip

    rows = [
        row(WINNER, 0, 0.9),
        row(WINNER, 1, 0.7),
        row("rewound", 0, 0.8),
        row("rewound", 1, 0.6),
    ]
    head, *lines = controls.table(rows)
    cells = {line[0]: dict(zip(head, line, strict=True)) for line in lines}
    assert cells["rewound"]["- winner"] == "-10.0 ± 0.0"
    assert cells["rewound"]["after, %"].startswith("70.0 ± 14.1 [")
    assert (cells["rewound"]["epochs"], cells[WINNER]["epochs"]) == ("10", "20 + 10")
    assert (cells["rewound"]["of training"], cells[WINNER]["of training"]) == ("5", "25")


def test_resnet20_is_rehearsed(call, stand_in, tmp_path, capsys):
    call("resnet20", more=[f"data.path={stand_in / 'cifar10-jpeg'}"])
    rows = json.loads((tmp_path / "resnet20.json").read_text())
    assert {row["method"] for row in rows["rows"]} == set(ARMS)
    assert "path" not in rows["settings"]["data"]
    capsys.readouterr()


@pytest.mark.parametrize("network", controls.NETWORKS)
def test_arms_train_for_as_many_epochs(network):
    config = read_config(controls.HERE / f"{network}.toml")
    assert config.pretrain.epochs == config.finetune.epochs
    assert {name.rpartition(":")[2] for name in config.baselines} | {"full", WINNER} == set(ARMS)


def test_what_is_in_the_repository_is_whole():
    """Five seeds on digits, of every arm, and the table in the README is that of the file."""
    results = Results(controls.HERE / "digits.json", controls.HELD)
    assert {(row["method"], row["seed"]) for row in results.rows} == {
        (name, seed) for name in ARMS for seed in range(5)
    }
    shown = (controls.HERE / "README.md").read_text()
    assert all(f"| {' | '.join(cells)} |" in shown for cells in controls.table(results.rows))
