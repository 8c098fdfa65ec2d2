"""Optuna's samplers: each keeps the contract, gets its options, and touches nothing global."""

import json
import random
import statistics
import warnings

import numpy as np
import optuna
import pytest

from abcsearch.budget import Budget
from abcsearch.config import parse_config
from abcsearch.errors import AbcSearchError, SearcherError
from abcsearch.searchers.optuna_search import OptunaOptions, OptunaSearch
from abcsearch.searchers.registry import make_searcher
from abcsearch.space import Dimension, SearchSpace
from abcsearch.testing.searchers import SearcherContract
from abcsearch.testing.toys import ToyCosts, through_json, toy_fitness, toy_space
from abcsearch.trial import Evaluation, Trial

SAMPLERS = ("cmaes", "gp", "nsga2", "qmc", "random", "tpe")
SPACE = toy_space()
CONSTRAINT = Budget(macs=0.5).bind(SPACE, ToyCosts())


def evaluated(candidates, start=0):
    return [
        Trial(start + i, c, Evaluation(fitness=toy_fitness(SPACE, c)))
        for i, c in enumerate(candidates)
    ]


def played(searcher, n):
    trials = []
    while len(trials) < n:
        batch = evaluated(searcher.ask(n - len(trials)), len(trials))
        searcher.tell(batch)
        trials += batch
    return trials


@pytest.mark.parametrize("sampler", ["cmaes", "nsga2", "qmc"], scope="class")
class TestContract(SearcherContract):
    """Less deep than with TPE, which is in the contract as the searcher optuna: what surrounds them is the same."""

    rounds, trials = 100, 100

    @pytest.fixture(autouse=True)
    def _sampler(self, sampler):
        self.sampler = sampler

    def make(self, space, constraint, seed):
        return make_searcher("optuna", space, constraint, seed=seed, sampler=self.sampler)


class TestGaussianProcess(SearcherContract):
    """The slow one: fewer dimensions, and its model decides for 8 of 24 trials only."""

    rounds, trials = 12, 24

    def problem(self):
        space = toy_space(3, 7)
        return space, Budget(macs=0.5).bind(space, ToyCosts())

    def make(self, space, constraint, seed):
        options = {"n_startup_trials": 16}
        return make_searcher(
            "optuna", space, constraint, seed=seed, sampler="gp", sampler_options=options
        )

    def play(self, searcher, n, sizes=(7,), start=0):
        return super().play(searcher, min(n, self.trials), sizes, start)

    test_order_of_telling_changes_nothing = None  # what these show does not depend on the sampler
    test_failed_trials_never_win_and_do_not_stop_the_search = None
    test_every_dimension_changes_in_time = None  # takes more trials than there is time for
    test_a_small_space_is_exhausted_and_its_optimum_found = None
    test_saved_and_loaded_continues_bit_for_bit = (
        None  # see test_continues_in_the_middle_of_a_batch
    )


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_continues_in_the_middle_of_a_batch(sampler):
    n = 16 if sampler == "gp" else 200
    straight = make_searcher("optuna", SPACE, CONSTRAINT, seed=3, sampler=sampler)
    played(straight, n)
    batch = evaluated(straight.ask(5), n)
    straight.tell(batch[2:4])
    state = through_json(straight.state_dict())
    values = {
        key: value for key, value in state["own"].items() if not isinstance(value, np.ndarray)
    }
    assert len(json.dumps(values)) < 100 * n
    assert (
        sum(value.nbytes for value in state["own"].values() if isinstance(value, np.ndarray))
        < 200 * n
    )
    loaded = make_searcher("optuna", SPACE, CONSTRAINT, seed=99, sampler=sampler)
    loaded.load_state_dict(state)
    for searcher in (straight, loaded):
        searcher.tell([batch[i] for i in (0, 1, 4)])
    rest = 11 if sampler == "gp" else 60
    assert played(straight, rest) == played(loaded, rest)


@pytest.mark.parametrize(
    "sampler_options", [{"with_margin": True}, {"use_separable_cma": True, "popsize": 6}]
)
def test_variants_of_cmaes_continue(sampler_options):
    runs = [
        make_searcher("optuna", SPACE, CONSTRAINT, sampler="cmaes", sampler_options=sampler_options)
        for _ in range(2)
    ]
    played(runs[0], 72)
    runs[1].load_state_dict(through_json(runs[0].state_dict()))
    assert played(runs[0], 40) == played(runs[1], 40)


@pytest.mark.parametrize(
    ("sampler", "option", "value", "attribute"),
    [
        ("tpe", "n_ei_candidates", 7, "_n_ei_candidates"),
        ("gp", "n_startup_trials", 7, "_n_startup_trials"),
        ("cmaes", "popsize", 7, "_popsize"),
        ("nsga2", "population_size", 7, "_population_size"),
        ("qmc", "qmc_type", "halton", "_qmc_type"),
    ],
)
def test_options_reach_the_sampler(sampler, option, value, attribute):
    searcher = make_searcher(
        "optuna", SPACE, CONSTRAINT, sampler=sampler, sampler_options={option: value}, batch=3
    )
    assert len(searcher.ask(10)) == 3
    assert getattr(searcher._study.sampler, attribute) == value


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sampler": "tpr"}, "did you mean 'tpe'"),
        ({"sampler": "nsgaii"}, "did you mean 'nsga2'"),
        ({"sampler_options": {"n_startup_trial": 3}}, "did you mean 'n_startup_trials'"),
        ({"sampler_options": {"seed": 3}}, "unknown option of Optuna's sampler 'tpe': 'seed'"),
        (
            {"sampler_options": {"n_startup_trials": "ten"}},
            "n_startup_trials is of type int .default 10., found 'ten'",
        ),
        ({"sampler_options": {"constant_liar": 1}}, "constant_liar is of type bool"),
        ({"sampler_options": {"prior_weight": min}}, "prior_weight must be a plain value"),
        (
            {"sampler_options": {"gamma": min}},
            "gamma is an object of Python's.*; choose from: .*n_ei_candidates",
        ),
        ({"sampler_options": {"gamma": 3}}, "gamma is an object of Python's"),
        ({"sampler_options": {"weights": None}}, "weights is an object of Python's"),
        (
            {"sampler": "gp", "sampler_options": {"constraints_func": "f"}},
            "constraints_func is an object of Python's",
        ),
        (
            {"sampler": "nsga2", "sampler_options": {"crossover": "uniform"}},
            "choose from: population_size, mutation_prob,",
        ),
        (
            {"sampler": "cmaes", "sampler_options": {"source_trials": []}},
            "source_trials is an object of Python's",
        ),
        (
            {"sampler": "qmc", "sampler_options": {"x": 1}},
            "choose one of: qmc_type, scramble, warn_",
        ),
        (
            {"sampler": "nsga2", "sampler_options": {"population_size": 1}},
            "'nsga2' failed .* greater than or equal to",
        ),
        (
            {"sampler": "qmc", "sampler_options": {"qmc_type": "soboll"}},
            "Choose either `halton` or `sobol`",
        ),
        ({"batch": 0}, "batch is from 1 to 1000"),
        ({"batch": 1.5}, "batch is a whole number"),
    ],
)
def test_wrong_options_are_refused(options, words):
    with pytest.raises(SearcherError, match=words):
        OptunaOptions(**options)


def test_options_are_read_from_a_config():
    table = {"name": "optuna", "sampler": "cmaes", "sampler_options": {"popsize": 7}}
    given = {
        "model": {"name": "resnet20"},
        "data": {"name": "digits"},
        "n_trials": 1,
        "budget": {"macs": 0.5},
        "pretrain": {},
    }
    config = parse_config({**given, "searcher": table})
    assert config.searcher.options == {"sampler": "cmaes", "sampler_options": {"popsize": 7}}
    with pytest.raises(AbcSearchError, match="did you mean 'popsize'"):
        parse_config({**given, "searcher": {**table, "sampler_options": {"popsiz": 7}}})


def test_what_only_shows_during_the_search_is_an_error_of_ours():
    searcher = make_searcher("optuna", SPACE, sampler="cmaes", sampler_options={"popsize": -3})
    with pytest.raises(SearcherError, match=r"'cmaes' failed with the options {'popsize': -3}"):
        searcher.ask(1)
    searcher = make_searcher(
        "optuna", SPACE, sampler_options={"n_ei_candidates": 0, "n_startup_trials": 2}, batch=2
    )
    with pytest.raises(
        SearcherError, match=r"'tpe' failed with the options {'n_ei_candidates': 0, .*: IndexError"
    ):
        played(searcher, 8)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_nothing_global_is_touched(sampler, capfd):
    def everything():
        return (
            optuna.logging.get_verbosity(),
            list(warnings.filters),
            str(np.random.get_state()),  # noqa: NPY002
            random.getstate(),
        )

    before = everything()
    played(make_searcher("optuna", SPACE, CONSTRAINT, sampler=sampler, initial=[0.5]), 20)
    assert everything() == before
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_spaces_with_one_free_dimension_and_with_none(sampler):
    one = SearchSpace((Dimension("a", "width", (1, 2, 3)), Dimension("b", "width", (4,))))
    none = SearchSpace((Dimension("b", "width", (4,)),))
    for space in (one, none):
        searcher = OptunaSearch(space, options=OptunaOptions(sampler=sampler, batch=2))
        proposed = []
        while asked := searcher.ask(2):
            searcher.tell(
                [Trial(i, c, Evaluation(fitness=float(c[0]))) for i, c in enumerate(asked)]
            )
            proposed += asked
        assert len(proposed) == space.size


@pytest.mark.parametrize("sampler", ["gp", "cmaes"])
def test_continues_with_constraints(sampler):
    runs = [
        make_searcher("optuna", SPACE, CONSTRAINT, sampler=sampler, batch=4, constraints=True)
        for _ in range(2)
    ]
    played(runs[0], 28 if sampler == "cmaes" else 12)
    runs[1].load_state_dict(through_json(runs[0].state_dict()))
    assert played(runs[0], 4) == played(runs[1], 4)


def test_failed_trials_are_told_as_the_worst_so_far():
    searcher = make_searcher("optuna", SPACE, CONSTRAINT, batch=3)
    asked = searcher.ask(3)
    failed = Trial(2, asked[2], Evaluation(fitness=None, failure="made to fail"))
    good, better, _ = (Trial(i, c, Evaluation(fitness=0.1 + i)) for i, c in enumerate(asked))
    searcher.tell([failed, good, better])
    assert [trial.value for trial in searcher._study.trials] == [0.1, 1.1, 0.1]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_optuna_is_told_what_was_evaluated(sampler):
    searcher = make_searcher(
        "optuna", SPACE, CONSTRAINT, sampler=sampler, initial=[0.4], constraints=True
    )
    trials = played(searcher, 16)
    names = [d.name for d in SPACE.dimensions if len(d.choices) > 1]
    for trial, told in zip(trials, searcher._study.trials, strict=True):
        positions = dict(
            zip(
                [d.name for d in SPACE.dimensions],
                SPACE.indices(trial.candidate).tolist(),
                strict=True,
            )
        )
        assert told.params == {name: positions[name] for name in names}
        assert told.value == trial.fitness
        cost = int(ToyCosts().macs([trial.candidate])[0])
        assert told.constraints == {"macs high": cost / CONSTRAINT.limits[0].high - 1}


def test_tpe_beats_random_on_a_toy_table():
    def best(sampler, seed):
        searcher = make_searcher("optuna", SPACE, CONSTRAINT, seed=seed, sampler=sampler)
        return max(trial.fitness for trial in played(searcher, 80))

    medians = {
        sampler: statistics.median(best(sampler, seed) for seed in range(3))
        for sampler in ("tpe", "random")
    }
    assert medians["tpe"] > medians["random"] + 0.004  # 0.8869, the optimum, with every seed
