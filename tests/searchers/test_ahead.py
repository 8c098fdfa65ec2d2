"""Asked ahead: batches overlap, are learned whole and once, and the search goes on learning."""

from types import SimpleNamespace

import numpy as np
import pytest

from abcsearch.budget import Budget
from abcsearch.errors import AbcSearchError
from abcsearch.searchers.base import Searcher
from abcsearch.searchers.bee_colony import BeeColony, BeeColonyOptions
from abcsearch.searchers.registry import SEARCHERS, make_searcher
from abcsearch.testing.searchers import SearcherContract, _any
from abcsearch.testing.toys import ToyCosts, through_json, toy_fitness, toy_space
from abcsearch.trial import Evaluation, Trial

SPACE = toy_space()
BOUND = Budget(macs=0.5).bind(SPACE, ToyCosts())
SMALL = {"ddpg": {"hidden": 32, "warmup": 24, "replay": 40, "updates_per_episode": 4}}
SEQUENTIAL = {"greedy", "bee_colony_official", "network_adjustment"}


class Threes(Searcher):
    """Random structures, three at a time; notes what it is given to learn."""

    name = "threes"
    overlaps = True

    def _begin(self):
        self.learned = []

    def _propose(self):
        return [self._fresh(self._random) for _ in range(3)]

    def _learn(self, batch):
        self.learned.append([trial.number for trial in batch])

    def _state(self):
        return {"learned": self.learned}

    def _load_state(self, state):
        self.learned = [list(numbers) for numbers in state["learned"]]


class Waiting(Threes):
    """As a searcher is that was written before there was anything to overlap."""

    overlaps = Searcher.overlaps

    def _propose(self):
        self.latest = super()._propose()
        return self.latest

    def _learn(self, batch):
        assert [trial.candidate for trial in batch] == self.latest
        super()._learn(batch)


def trials_of(candidates, fitness=toy_fitness, start=0):
    return [
        Trial(start + i, c, Evaluation(fitness=fitness(SPACE, c))) for i, c in enumerate(candidates)
    ]


@pytest.mark.parametrize("saved", [False, True])
def test_batches_are_learned_whole_once_and_in_the_order_of_asking(saved):
    searcher = Threes(SPACE)
    trials = trials_of(searcher.ask(8, ahead=True))  # two batches and two of a third
    expected = []
    for number, learned in (
        (7, None),
        (4, None),
        (6, None),
        (3, None),
        (2, None),
        (5, [3, 4, 5]),
        (0, None),
    ):
        searcher.tell([trials[number]])
        expected += [learned] if learned else []
        assert searcher.learned == expected
        if saved:
            state = through_json(searcher.state_dict())
            searcher = Threes(SPACE, seed=9)
            searcher.load_state_dict(state)
    # The rest of the third; not ahead, for the first is open
    trials += trials_of(searcher.ask(1), start=8)
    assert searcher.ask(1) == []
    searcher.tell([trials[8], trials[1]])
    assert searcher.learned == [[3, 4, 5], [6, 7, 8], [0, 1, 2]]


def test_searchers_overlap_only_where_they_say_so():
    searcher = Waiting(SPACE)
    for _ in range(5):
        asked = searcher.ask(10, ahead=True)
        assert len(asked) == 3
        assert searcher.ask(1, ahead=True) == []
        searcher.tell(reversed(trials_of(asked)))
    assert len(searcher.learned) == 5
    assert {name for name, entry in SEARCHERS.items() if not entry.searcher.overlaps} == SEQUENTIAL


def test_without_ahead_an_open_batch_is_waited_for():
    searcher = Threes(SPACE)
    assert len(searcher.ask(4, ahead=True)) == 4
    assert len(searcher.ask(4)) == 2
    assert searcher.ask(4) == []
    assert len(searcher.ask(4, ahead=True)) == 4


class Succeeding(SearcherContract):
    """Plays without failures."""

    def evaluated(self, space, candidate, number):
        return Trial(number, candidate, Evaluation(fitness=toy_fitness(space, candidate)))


def slid(name, seed, n=300, **options):
    """What is asked for, and its fitness."""
    asked = Succeeding().slide(
        make_searcher(name, SPACE, BOUND, seed=seed, **options), n, _any(seed)
    )
    return asked, np.array([toy_fitness(SPACE, candidate) for candidate in asked])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in ("bee_colony", "evolution", "regularized_evolution")),
        *(("optuna", {"sampler": sampler}) for sampler in ("cmaes", "nsga2", "tpe")),
    ],
)
def test_asked_ahead_it_beats_random_search(name, options):
    # Of two seeds together: TPE's proposals depend on the CPU (the last bits of sums), and one seed alone varies.
    ahead = []
    for seed in range(2):
        late, drawn = (slid(n, seed, **o)[1][200:] for n, o in ((name, options), ("random", {})))
        ahead.append((late.mean() - drawn.mean()) / drawn.std())
    assert np.mean(ahead) > 0.3


@pytest.mark.parametrize("seed", range(2))
def test_asked_ahead_the_surface_finds_the_best_soon(seed):
    """Later it has to propose what is left."""
    found, drawn = (
        np.maximum.accumulate(slid(name, seed)[1])[:200] for name in ("response_surface", "random")
    )
    assert found.mean() > drawn.mean() + 0.003


@pytest.mark.parametrize("seed", range(2))
def test_asked_ahead_the_agent_learns(seed):
    _, fitness = slid("ddpg", seed, n=320, hidden=64, warmup=64, updates_per_episode=9)
    assert fitness[-64:].mean() > fitness[:64].mean() + 0.5 * fitness[:64].std()


@pytest.mark.parametrize("seed", range(2))
def test_asked_ahead_the_front_advances(seed):
    asked, fitness = slid("nsga2", seed, population=20)
    spent = ToyCosts().macs(asked) / BOUND.limits[0].high
    allowed = np.linspace(0.05, 1, 50)

    def area(part):
        return np.mean([fitness[part][spent[part] <= cost].max(initial=0) for cost in allowed])

    assert area(slice(250, 300)) > area(slice(50)) + 0.03


@pytest.mark.parametrize(
    ("name", "options", "first", "more"),
    [
        ("regularized_evolution", {"population": 30, "sample_size": 5, "batch": 7}, 30, 7),
        ("response_surface", {}, 12, 8),
    ],
)
def test_only_the_first_batch_is_as_large_as_a_population(name, options, first, more):
    searcher = make_searcher(name, SPACE, BOUND, **options)
    assert len(searcher.ask(1000)) == first
    searcher.ask(1, ahead=True)
    assert len(searcher.ask(1000)) == more - 1


def bees(**options):
    searcher = BeeColony(SPACE, BOUND, options=BeeColonyOptions(**options))

    def tell(candidates, *fitness):
        searcher.tell(
            [Trial(0, c, Evaluation(fitness=f)) for c, f in zip(candidates, fitness, strict=True)]
        )

    return searcher, tell


def test_bees_whose_first_batch_is_late_start_from_the_next():
    searcher, tell = bees(n_sources=2)
    late, early = searcher.ask(2), searcher.ask(2, ahead=True)
    assert searcher.population() == []
    tell(early, 0.5, 0.6)
    assert searcher.population() == [early[1], early[0]]
    tell(late, 0.7, 0.1)  # they compare as neighbours do, source by source
    assert searcher.population() == [late[0], early[1]]


def test_bees_fill_free_places_first():
    searcher, tell = bees(n_sources=3)
    late = searcher.ask(3)
    searcher._sources, searcher._fitness, searcher._stagnation = [SPACE.full], [0.5], [0]
    tell(late, 0.4, 0.6, 0.3)
    assert searcher.population() == [late[1], SPACE.full, late[2]]


def test_bees_send_one_scout_which_leaves_a_source_that_has_improved_alone():
    searcher, tell = bees(n_sources=2, abandonment_limit=1)
    tell(searcher.ask(2), 0.5, 0.4)
    employed, _ = searcher.ask(2, ahead=True), searcher.ask(2, ahead=True)
    tell(employed, 0.1, 0.1)  # both sources are abandoned
    scouts, neighbours, _ = (searcher.ask(2, ahead=True) for _ in range(3))
    again = searcher.ask(2, ahead=True)  # after onlookers, but both scouts are out
    flying = {candidate for candidate, (_, scout) in searcher._targets.items() if scout}
    assert flying == set(scouts)
    tell(neighbours, 0.9, 0.1)
    tell(scouts, 0.3, 0.2)
    assert searcher.population() == [neighbours[0], scouts[1]]
    tell(again, 0.4, 0.3)  # better than the scout, worse than the source that was there before
    assert searcher.population() == [neighbours[0], again[1]]


@pytest.mark.parametrize(
    "options",
    [
        {"sampler": "cmaes", "sampler_options": {"with_margin": True}},
        {
            "sampler": "cmaes",
            "sampler_options": {"use_separable_cma": True, "popsize": 5},
            "constraints": True,
        },
        {"sampler": "cmaes", "batch": 1, "initial": [0.4, 0.5]},
        {"sampler": "nsga2", "sampler_options": {"population_size": 6}, "batch": 20},
        {
            "sampler": "tpe",
            "sampler_options": {"n_startup_trials": 5},
            "batch": 3,
            "constraints": True,
        },
        {"sampler": "gp", "sampler_options": {"n_startup_trials": 16}},
    ],
    ids=str,
)
def test_optunas_samplers_continue_bit_for_bit(options):
    order = np.random.default_rng(0)

    def make(seed):
        return make_searcher("optuna", SPACE, BOUND, seed=seed, **options)

    def reloaded(searcher):
        if order.random() < 0.6:
            return searcher
        state = through_json(searcher.state_dict())
        searcher = make(99)
        searcher.load_state_dict(state)
        return searcher

    n = 40 if options["sampler"] == "gp" else 80
    runs = [
        SearcherContract().slide(make(5), n, _any(1), between)
        for between in (lambda s: s, reloaded)
    ]
    assert runs[0] == runs[1]


class Unread(dict):
    """What is known, for looking up only."""

    def __iter__(self):
        msg = "all that is known was gone through"
        raise AssertionError(msg)

    keys = values = items = __iter__


@pytest.mark.parametrize(
    "name", sorted(set(SEARCHERS) - {"response_surface", "given"})
)  # it scores all that is known; has nothing to go through
def test_no_call_goes_through_all_that_is_known(name):
    searcher = make_searcher(name, SPACE, BOUND, **SMALL.get(name, {}))
    searcher._known = Unread()
    assert len(SearcherContract().slide(searcher, 150, _any(0))) == 150


def test_populations_are_what_the_papers_call_so():
    def played(name, **options):
        searcher = make_searcher(name, SPACE, BOUND, **options)
        trials = SearcherContract().play(searcher, 120)
        found = [trial for trial in trials if trial.evaluation.failure is None]
        return searcher, sorted(found, key=lambda trial: -trial.fitness), found

    def ranked(searcher):
        fitness = [toy_fitness(SPACE, candidate) for candidate in searcher.population()]
        assert fitness == sorted(fitness, reverse=True)
        return len(fitness)

    searcher, best, _ = played("evolution", population=20, parents=4, mutations=10, crossovers=10)
    assert searcher.population() == [trial.candidate for trial in best[:4]]
    searcher, _, found = played("regularized_evolution", population=20, sample_size=5)
    assert ranked(searcher) == 20
    assert set(searcher.population()) == {trial.candidate for trial in found[-20:]}
    # Where luck is forgotten, the order of sources is not that of their fitness.
    for name, options in (("bee_colony", {"decay": 0}), ("bee_colony_official", {})):
        searcher, *_ = played(name, n_sources=6, **options)
        assert ranked(searcher) == 6
        assert set(searcher.population()) == set(searcher._sources)
    searcher, *_ = played("nsga2", population=20)
    assert searcher.population() == searcher._members != []
    searcher, *_ = played("greedy")
    assert searcher._scores[searcher.population()[0]] == max(searcher._scores.values())
    assert make_searcher("greedy", SPACE, BOUND).population() == [SPACE.at(SPACE.last_indices)]
    for name in ("random", "optuna", "response_surface", "ddpg"):
        assert played(name, **SMALL.get(name, {}))[0].population() == []


CONTRACT = SimpleNamespace(
    window=SearcherContract.test_asked_ahead_the_window_stays_full_of_new_structures_inside,
    same=SearcherContract.test_asked_ahead_the_same_calls_give_the_same_proposals,
    saved=SearcherContract.test_asked_ahead_saved_and_loaded_at_any_point_continues_bit_for_bit,
    population=SearcherContract.test_what_it_works_from_is_inside_the_space,
)
"""The contract's tests of what is asked ahead, each with a searcher that breaks it."""


class Starving(Threes):
    def _propose(self):
        return [] if self._batches else super()._propose()


class Twice(Threes):
    def _propose(self):
        return [self._random() for _ in range(2)] + [self.space.nearest([5.0] * len(self.space))]


class Outside(Threes):
    def _propose(self):
        return [self._remember(self.space.sample(self.rng)) for _ in range(3)]


class Drawing(Threes):
    def _begin(self):
        super()._begin()
        self.rng = np.random.default_rng()


class Forgetful(Threes):
    """Its proposals depend on what it learned, which it does not save."""

    def _propose(self):
        self.rng.random(len(self.learned))
        return super()._propose()

    def _state(self):
        return {"learned": self.learned[:2]}


class Latest(Waiting):
    overlaps = True


class Numpy(Threes):
    def population(self):
        return [tuple(self.space.values(self.space.last_indices))]


class Crowded(Threes):
    def population(self):
        return [self.space.full] * 2


@pytest.mark.parametrize(
    ("test", "broken"),
    [
        (CONTRACT.window, Starving),
        (CONTRACT.window, Twice),
        (CONTRACT.window, Outside),
        (CONTRACT.window, Latest),
        (CONTRACT.same, Drawing),
        (CONTRACT.saved, Forgetful),
        (CONTRACT.population, Numpy),
        (CONTRACT.population, Crowded),
    ],
)
def test_the_contract_finds_what_is_broken(test, broken):
    class Contract(SearcherContract):
        made = Threes

        def make(self, space, constraint, seed):
            return self.made(space, constraint, seed=seed)

    test(Contract())
    Contract.made = broken
    with pytest.raises((AssertionError, ValueError, AbcSearchError)):
        test(Contract())
