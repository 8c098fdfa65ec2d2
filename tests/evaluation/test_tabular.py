"""Tables of trained networks: what is read, looked up and refused."""

import gzip
import itertools
import re

import numpy as np
import pytest

from abcsearch.budget import Budget, Constraint
from abcsearch.errors import BudgetError, CandidateError, DataError
from abcsearch.evaluation.base import evaluate
from abcsearch.evaluation.tabular import Tabular
from abcsearch.searchers.registry import make_searcher
from abcsearch.space import Dimension, SearchSpace
from abcsearch.trial import Trial, best_trial

WIDTHS = ((4, 8, 16), (2, 4, 6), (10, 20, 100))
EVERY = list(itertools.product(*WIDTHS))
HEADER = ["index", "arch", "params_a", "flops_a", "acc_a", "params_bird", "flops_bird", "acc_bird"]


def params(c, outputs=10):
    return 3 * c[0] + c[0] * c[1] + c[1] * c[2] + outputs * c[2]


def macs(c, outputs=10):
    return 300 * c[0] + 60 * c[0] * c[1] + 9 * c[1] * c[2] + outputs * c[2]


def accuracy(c, shift=0.0):
    """Not the widest network is best: accuracies of trained networks are noisy."""
    return round(40 + shift + 3 * c[0] ** 0.5 + 5 * np.log(c[1] * c[2]) + (7 * sum(c)) % 5, 3)


def lines(every=EVERY):
    """The table: rows in an order of their own, cells by column."""
    rows = [
        [
            *(str(i), ":".join(map(str, c)), str(params(c)), str(macs(c)), str(accuracy(c))),
            *(str(params(c, 20)), str(macs(c, 20)), str(accuracy(c, -9))),
        ]
        for i, c in enumerate(every)
    ]
    np.random.default_rng(0).shuffle(rows)
    return [HEADER, *rows]


def text(cells):
    return "".join(",".join(row) + "\n" for row in cells)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text(text(lines()))
    return path


@pytest.fixture
def table(path):
    return Tabular.read(path, "a")


def refusal(path, dataset="a"):
    with pytest.raises(DataError) as caught:
        Tabular.read(path, dataset)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message.replace(str(path), "TABLE")


def test_plain_and_packed_tables_read_the_same(path, tmp_path, table):
    packed = tmp_path / "table.csv.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    windows = tmp_path / "windows.csv"
    windows.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    for other in (Tabular.read(packed, "a"), Tabular.read(str(windows), "a")):
        assert other.space == table.space
        assert (other.fitness(EVERY) == table.fitness(EVERY)).all()
        assert (other.costs.macs(EVERY) == table.costs.macs(EVERY)).all()


def test_space_has_the_widths_of_the_rows(table):
    assert table.space == SearchSpace(
        tuple(Dimension(f"layer{i}", "width", w) for i, w in enumerate(WIDTHS))
    )
    assert table.space.size == 27
    assert table.space.full == (16, 6, 100)


@pytest.mark.parametrize(("dataset", "outputs", "shift"), [("a", 10, 0), ("bird", 20, -9)])
def test_costs_and_fitness_are_those_of_the_rows(path, dataset, outputs, shift):
    table = Tabular.read(path, dataset)
    drawn = np.random.default_rng(1).choice(EVERY, 60)
    for asked in (EVERY, drawn, np.array(EVERY[:1]), np.zeros((0, 3), dtype=int)):
        assert table.costs.macs(asked).tolist() == [macs(c, outputs) for c in asked]
        assert table.costs.params(asked).tolist() == [params(c, outputs) for c in asked]
        np.testing.assert_allclose(
            table.fitness(asked), [accuracy(c, shift) / 100 for c in asked], rtol=1e-15
        )
    assert table.costs.macs(EVERY).dtype == table.costs.params(EVERY).dtype == np.int64


def test_an_evaluation_is_the_row_whatever_the_seed(table):
    for c in EVERY:
        found = table(c, 3)
        assert found == table(c, 4)
        assert found.fitness == found.metrics["top1"] == pytest.approx(accuracy(c) / 100, rel=1e-15)
        assert (found.macs, found.params, found.failure) == (macs(c), params(c), None)


@pytest.mark.parametrize(
    ("absent", "why"),
    [
        ((4, 3, 10), "'layer1' is 3; allowed are"),
        ((4, 2, 101), "'layer2' is 101"),
        ((4, 2, 10**6), "'layer2' is 1000000"),
        ((-4, 2, 10), "'layer0' is -4"),
        ((0, 2, 10), "'layer0' is 0"),
        ((4, 2), r"\(n, 3\), found \(1, 2\)"),
        ((4, 2, 10, 10), r"\(n, 3\), found \(1, 4\)"),
        ((), r"\(n, 3\)"),
        ((4, 2, 10**30), "too large"),
        ((4, None, 10), "None"),
    ],
)
def test_a_structure_that_is_not_there_is_a_failure(table, absent, why):
    found = table(absent, 0)
    assert found.fitness is None
    assert found.failure.startswith("not in the table: ")
    assert re.search(why, found.failure)


def test_many_structures_with_one_that_is_not_there_are_refused(table):
    for look_up in (table.fitness, table.costs.macs, table.costs.params):
        with pytest.raises(CandidateError, match=r"'layer1' is 5; allowed are \(2, 4, 6\)"):
            look_up([*EVERY, (4, 5, 10)])


@pytest.mark.parametrize(
    "budget",
    [
        Budget(macs=0.5),
        Budget(params=0.2),
        Budget(macs=(0.3, 0.6), params=0.5),
        Budget(macs=macs(EVERY[0])),
    ],
)
def test_optimum_is_that_of_all_structures_inside(table, budget):
    full = (16, 6, 100)
    cost = {"macs": macs, "params": params}

    def inside(c):
        for name, bound in budget.bounds.items():
            low, high = bound if isinstance(bound, tuple) else (0, bound)
            scale = cost[name](full) if isinstance(high, float) else 1
            if not low * scale <= cost[name](c) <= high * scale:
                return False
        return True

    allowed = [c for c in EVERY if inside(c)]
    assert 0 < len(allowed) < 27
    found = table.optimum(budget.bind(table.space, table.costs))
    assert found == pytest.approx(max(map(accuracy, allowed)) / 100, rel=1e-15)


def test_optimum_of_the_whole_table(table):
    best = pytest.approx(max(map(accuracy, EVERY)) / 100, rel=1e-15)
    assert table.optimum() == best
    assert table.optimum(Constraint(table.space)) == best


def test_a_table_knows_no_flops(table):
    with pytest.raises(BudgetError, match=r"budget flops = 0\.5: these costs .* have no flops"):
        Budget(flops=0.5).bind(table.space, table.costs)


@pytest.mark.parametrize("name", ["random", "evolution", "greedy"])
def test_searchers_find_the_optimum_of_a_small_table(table, name):
    constraint = Budget(macs=0.5).bind(table.space, table.costs)
    searcher = make_searcher(name, table.space, constraint, seed=1)
    trials = []
    while asked := searcher.ask(8):
        batch = [Trial(len(trials) + i, c, evaluate(table, c, i)) for i, c in enumerate(asked)]
        searcher.tell(batch)
        trials += batch
    inside = [c for c in EVERY if macs(c) <= macs((16, 6, 100)) / 2]
    assert sorted(trial.candidate for trial in trials) == inside
    assert best_trial(trials).fitness == table.optimum(constraint)


def test_an_unknown_data_set_is_told_the_nearest(path):
    assert "data set 'brid'" in refusal(path, "brid")
    assert "'bird'" in refusal(path, "brid")
    assert "bird" in refusal(path, "cifar10")


@pytest.mark.parametrize("column", ["arch", "acc_a", "flops_a", "params_a"])
def test_a_missing_column_is_named(path, column):
    at = HEADER.index(column)
    path.write_text(text([cells[:at] + cells[at + 1 :] for cells in lines()]))
    message = refusal(path)
    if column == "acc_a":  # then the table knows one data set less
        assert "data set 'a'" in message
    else:
        wanted = "arch, acc_a, flops_a, params_a"
        assert message == f"TABLE, line 1: a table needs the columns {wanted}, missing: {column}"


@pytest.mark.parametrize("content", ["", "\n", "x,y\n1,2\n"])
def test_a_file_without_any_column_is_no_table(path, content):
    path.write_text(content)
    assert "line 1: a table needs the columns arch" in refusal(path)


def test_a_table_without_rows_is_refused(path):
    path.write_text(text(lines()[:1]))
    assert refusal(path) == "TABLE: a table needs at least one row below its header, found none"


@pytest.mark.parametrize(
    ("column", "cell", "message"),
    [
        ("arch", "4:x:10", "widths and costs are whole numbers, accuracy is a number: .*'x'"),
        ("arch", "4:2.5:10", "whole numbers.*'2.5'"),
        ("arch", "", "whole numbers.*''"),
        ("arch", "4:2", "one width per layer, 3 as in the first row, found 2"),
        ("arch", "4:2:10:10", "one width per layer, 3 as in the first row, found 4"),
        ("arch", "4:0:10", "widths are from 1 to 65,536, found 4:0:10"),
        ("arch", "4:-2:10", "widths are from 1 to 65,536, found 4:-2:10"),
        ("arch", "4:2:70000", "widths are from 1 to 65,536, found 4:2:70000"),
        ("acc_a", "good", "accuracy is a number: .*'good'"),
        ("acc_a", "nan", "from 0 to 100, found nan"),
        ("acc_a", "inf", "from 0 to 100, found inf"),
        ("acc_a", "100.5", "from 0 to 100, found 100.5"),
        ("acc_a", "-1", "from 0 to 100, found -1"),
        ("flops_a", "1.5", "whole numbers.*'1.5'"),
        ("flops_a", "-3", "macs and params are from 0 to .*, found -3 and"),
        ("params_a", "many", "whole numbers.*'many'"),
        ("params_a", str(2**63), "macs and params are from 0 to .*9,223,372"),
    ],
)
def test_a_malformed_row_is_named(path, column, cell, message):
    cells = lines()
    cells[4][HEADER.index(column)] = cell
    path.write_text(text(cells))
    with pytest.raises(DataError, match=message):
        Tabular.read(path, "a")
    assert refusal(path).startswith("TABLE, row 5: ")


def test_a_row_that_ends_early_is_named(path):
    cells = lines()
    cells[7] = cells[7][:3]
    path.write_text(text(cells))
    assert refusal(path) == "TABLE, row 8: a row needs at least 5 cells, found 3"


def test_empty_lines_are_no_rows(path):
    path.write_text(text(lines()) + "\n\n")
    assert Tabular.read(path, "a").space.size == 27


def test_what_other_data_sets_hold_is_left_alone(path):
    cells = lines()
    cells[3][HEADER.index("acc_bird")] = "unknown"
    path.write_text(text(cells))
    assert Tabular.read(path, "a").space.size == 27
    assert "row 4" in refusal(path, "bird")


@pytest.mark.parametrize("missing", [0, 13, 26])
def test_a_missing_structure_is_named(path, missing):
    path.write_text(text(lines(EVERY[:missing] + EVERY[missing + 1 :])))
    message = refusal(path)
    assert "holds every combination of its widths, 27 structures, found 26" in message
    assert message.endswith(f"the first one missing is {':'.join(map(str, EVERY[missing]))}")


def test_a_structure_that_is_there_twice_is_named(path):
    path.write_text(text(lines([*EVERY, EVERY[7], EVERY[7]])))
    assert refusal(path) == "TABLE: a table holds every structure once, found 4:6:20 3 times"


def test_costs_that_fall_are_named_with_the_place(path):
    cells = lines()
    row = next(row for row in cells if row[1] == "8:4:100")
    row[HEADER.index("flops_a")] = "1"
    path.write_text(text(cells))
    message = refusal(path)
    assert message == (
        "TABLE: costs must not fall where a width grows, found macs falling along 'layer0' from 4:4:100"
    )


def test_files_that_cannot_be_read_are_named(tmp_path, path):
    packed = gzip.compress(path.read_bytes())
    contents = {
        "torn": packed[: len(packed) // 2],
        "binary": b"\x80\x81\x82",
        "marked": b"\x1f\x8bno gzip file at all",
    }
    contents["flipped"] = packed[:60] + bytes([packed[60] ^ 255]) + packed[61:]
    contents["trailing"] = packed + b"rubbish"
    for name, content in contents.items():
        file = tmp_path / f"{name}.csv.gz"
        file.write_bytes(content)
        assert "a table is a csv file, plain or as csv.gz; this one cannot be read: " in refusal(
            file
        )
    for file in (tmp_path / "nothing_here.csv", tmp_path):
        assert "cannot be read: " in refusal(file)


def test_a_broken_quote_is_named(path):
    path.write_text(text(lines()) + '27,"4:2')
    assert "not a csv file" in refusal(path)


def test_tables_made_by_hand_are_checked():
    space = SearchSpace(
        (Dimension("layer0", "width", (1, 2)), Dimension("layer1", "width", (3, 4, 5)))
    )
    fitness, cost = np.linspace(0, 1, 6), np.arange(6)
    assert Tabular(space, fitness, cost, cost).optimum() == 1
    for arrays, name in (
        ((fitness[1:], cost, cost), "fitness"),
        ((fitness, cost[:, None], cost), "macs"),
    ):
        with pytest.raises(DataError, match=f"has 6 structures, found {name} of shape"):
            Tabular(space, *arrays)
    with pytest.raises(DataError, match="found params falling along 'layer0' from 1:3"):
        Tabular(space, fitness, cost, cost[::-1])


def test_the_unpruned_network_must_be_in_the_table():
    space = SearchSpace((Dimension("layer0", "width", (1, 2), full=4),))
    with pytest.raises(DataError, match="a table holds the unpruned network, found 4 above"):
        Tabular(space, np.zeros(2), np.arange(2), np.arange(2))
