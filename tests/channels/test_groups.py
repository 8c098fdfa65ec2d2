"""Groups, spaces, fixed modules, and messages of `trace_channels`."""

import re
import warnings
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from abcsearch.channels.groups import UnsupportedOpWarning, trace_channels
from abcsearch.errors import CandidateError, TraceError
from tests.channels.networks import Program, Step, programs
from tests.channels.oracle import few, images


def chain(*widths):
    layers = [nn.Conv2d(a, b, 1) for a, b in zip((3, *widths), (*widths, 2), strict=True)]
    return trace_channels(nn.Sequential(*layers), torch.zeros(1, 3, 2, 2))


@few(30)
@given(st.one_of(programs(most=5), programs(strange=True, most=5)), st.integers(0, 99))
@pytest.mark.filterwarnings("ignore::abcsearch.channels.groups.UnsupportedOpWarning")
def test_groups_are_sound(program, seed):
    """Members of all groups are disjoint, cover whole channels, and their names are unique."""
    model = program.build(seed)
    graph = trace_channels(model, images(batch=1))
    assert len({group.name for group in graph.groups}) == len(graph.groups)
    paths = {path for path, _ in model.named_modules()} | {
        path for path, _ in model.named_parameters()
    }
    taken = set()
    for group in graph.groups:
        assert group.name.partition("[")[0] in paths
        for m in group.members:
            assert len(m.entries) == len(m.channels) > 0
            assert len(m.entries) % group.channels == 0
            times = len(m.entries) // group.channels
            assert sorted(m.channels.tolist()) == sorted([*range(group.channels)] * times)
            cells = {(m.parameter, m.axis, entry) for entry in m.entries.tolist()}
            assert len(cells) == len(m.entries)
            assert not cells & taken
            taken |= cells
    assert graph.groups[-1].name == "classifier" or any(
        g.fixed == "the network's output" for g in graph.groups
    )
    names = [group.name for group in graph.prunable]
    again = trace_channels(model, images(batch=2))
    assert [group.name for group in again.prunable] == names
    assert (
        graph.space().full == tuple(group.channels for group in graph.prunable) if names else True
    )


STEPS = [0.01, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.25, 0.3, 0.45, 0.9, 1 / 3, 1 / 7, 2 / 9]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("alpha", [0.9, 1, 1.0])
def test_choices_are_exact(step, alpha):
    exact = Fraction(step).limit_denominator(1000)
    for c in (2, 7, 10, 64, 100, 300, 1000, 2048):
        (dimension,) = chain(c).space(alpha=alpha, step=step).dimensions
        expected, h = set(), 1
        while h * exact <= Fraction(str(alpha)):
            expected.add(max(1, c * h * exact.numerator // exact.denominator))
            h += 1
        assert dimension.choices == tuple(sorted(expected))
        assert dimension.full == c


def test_the_default_is_ten_percent_steps_up_to_ninety():
    (dimension,) = chain(64).space().dimensions
    assert dimension.choices == tuple(max(1, 64 * h // 10) for h in range(1, 10))
    (dimension,) = chain(4).space().dimensions
    assert dimension.choices == (1, 2, 3)


@pytest.mark.parametrize(
    ("lowest", "step", "alpha", "count"),
    [(0.1, 0.03, 1, 31), (0.3, 0.02, 1.0, 36), (0.7, 0.1, 0.7, 1)],
)
def test_widths_start_at_the_lowest_keep_ratio(lowest, step, alpha, count):
    (dimension,) = chain(1000).space(alpha=alpha, step=step, lowest=lowest).dimensions
    thousandths = [round(1000 * lowest) + round(1000 * step) * h for h in range(count)]
    assert dimension.choices == tuple(thousandths)
    assert thousandths[-1] == 1000 * alpha


@few(60)
@given(st.integers(2, 200), st.integers(1, 40), st.integers(5, 100))
def test_divisors(c, divisor, percent):
    alpha = percent / 100
    (dimension,) = chain(c).space(alpha=alpha, step=0.05, divisor=divisor).dimensions
    assert all(choice % divisor == 0 or choice == c < divisor for choice in dimension.choices)
    assert min(dimension.choices) >= min(c, divisor)
    assert (
        max(dimension.choices) <= max(percent * c // 100, divisor)
        or max(dimension.choices) == c < divisor
    )


@pytest.mark.parametrize("conv_groups", [1, 4, 8, 16, 32])
def test_divisors_count_channels_of_layers(conv_groups):
    layers = [nn.Conv2d(3, 64, 1), nn.Conv2d(64, 64, 1, groups=conv_groups), nn.Conv2d(64, 4, 1)]
    graph = trace_channels(nn.Sequential(*layers), torch.zeros(1, 3, 2, 2))
    for group, dimension in zip(graph.prunable, graph.space(divisor=8).dimensions, strict=True):
        times = 64 // group.channels
        assert [width * times for width in dimension.choices] == [
            8 * n for n in range(1, 8) if 8 * n >= times
        ]


def test_divisors_count_channels_that_stay():
    class Part(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.end = (
                nn.Conv2d(3, 20, 1),
                nn.Conv2d(4, 4, 1),
                nn.Conv2d(20, 4, 1),
            )

        def forward(self, x):
            x = self.one(x)
            return self.end(torch.cat([self.two(x[:, :4].softmax(1)), x[:, 4:]], 1))

    with pytest.warns(UnsupportedOpWarning):
        graph = trace_channels(Part(), torch.zeros(1, 3, 2, 2))
    widths = {d.name: d.choices for d in graph.space(divisor=8).dimensions}
    assert widths == {"one[4:20]": (4, 12), "two": (4,)}


MIXED = Program(
    (
        Step("conv", (0,), "", 6),
        Step("conv", (1,), "", 4),
        Step("conv", (2,), "", 6),
        Step("binary", (1, 3), "plus"),
    ),
    ("mean", 5, False),
)


def test_levels_choose_what_is_searched():
    graph = trace_channels(MIXED.build(), images(batch=1))
    kinds = [group.kind for group in graph.prunable]
    assert kinds == ["stage", "filter", "filter"]
    stage, filters = graph.space(levels=("stage",)), graph.space(levels=["filter"])
    assert [len(d.choices) > 1 for d in stage.dimensions] == [True, False, False]
    assert [len(d.choices) > 1 for d in filters.dimensions] == [False, True, True]
    assert stage.full == filters.full == graph.space().full == (6, 4, 5)
    assert filters.dimensions[0].choices == (6,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alpha": 0}, "space: alpha is the largest keep ratio, above 0 and at most 1, found 0"),
        (
            {"alpha": 1.1},
            "space: alpha is the largest keep ratio, above 0 and at most 1, found 1.1",
        ),
        ({"step": 0}, "space: step is the distance of keep ratios, from 1e-06 to 0.9, found 0"),
        (
            {"step": 1e-9},
            "space: step is the distance of keep ratios, from 1e-06 to 0.9, found 1e-09",
        ),
        (
            {"step": 0.95},
            "space: step is the distance of keep ratios, from 1e-06 to 0.9, found 0.95",
        ),
        (
            {"levels": ("filters",)},
            "space: unknown entry of levels: 'filters'; did you mean 'filter'?",
        ),
        (
            {"levels": ()},
            "space: levels is a list with at least one of filter, stage, block, found ()",
        ),
        (
            {"levels": "filter"},
            "space: levels is a list with at least one of filter, stage, block, found 'filter'",
        ),
        ({"divisor": 0}, "space: divisor is at least 1, found 0"),
        (
            {"lowest": 0.95},
            "space: lowest is the smallest keep ratio, from 1e-06 to 0.9, found 0.95",
        ),
        ({"lowest": 0}, "space: lowest is the smallest keep ratio, from 1e-06 to 0.9, found 0"),
        ({"divisor": 1.5}, "space: divisor is a whole number, found 1.5"),
    ],
)
def test_settings_of_a_space_out_of_range(arguments, message):
    with pytest.raises(CandidateError, match=re.escape(message)):
        chain(10).space(**arguments)


def test_nothing_to_prune_names_every_group_and_why():
    model = nn.Sequential(nn.Conv2d(3, 1, 1), nn.Conv2d(1, 6, 1, groups=1), nn.Conv2d(6, 4, 1))
    graph = trace_channels(model, torch.zeros(1, 3, 2, 2), fixed=["1"])
    message = (
        "nothing can be pruned at level filter and stage: 0 (filter, 1 channel): it has only one channel; "
        "1 (filter, 6 channels): fixed by the caller; 2 (filter, 4 channels): the network's output"
    )
    with pytest.raises(TraceError, match=re.escape(message)):
        graph.space()
    with pytest.raises(
        TraceError,
        match=re.escape("at level stage: 0 (filter, 10 channels): not searched; 1 (filter"),
    ):
        chain(10).space(levels=("stage",))
    with pytest.raises(TraceError, match="no convolution or linear layer found"):
        trace_channels(nn.ReLU(), torch.zeros(1, 3)).space()
    grouped = nn.Sequential(nn.Conv2d(4, 4, 1, groups=2), nn.ReLU(), nn.Conv2d(4, 1, 1))
    graph = trace_channels(grouped, torch.zeros(1, 4, 2, 2), unknown="raise")
    with pytest.raises(
        TraceError,
        match=r"channels\): Conv2d 0: grouped convolution of an input that keeps its channels",
    ):
        graph.space()


def test_fixed_modules_keep_their_channels():
    model = MIXED.build()
    graph = trace_channels(model, images(batch=1), fixed=["layers.1"])
    assert {g.name: g.fixed for g in graph.groups} == {
        "layers.0": None,
        "layers.1": "fixed by the caller",
        "hidden": None,
        "classifier": "the network's output",
    }
    coupled = trace_channels(model, images(batch=1), fixed=["layers.2"])
    assert {g.name: g.fixed for g in coupled.groups}["layers.0"] == "fixed by the caller"
    assert [g.name for g in trace_channels(model, images(batch=1), fixed=["layers"]).prunable] == [
        "hidden"
    ]


@pytest.mark.parametrize(
    ("path", "advice"),
    [
        ("layers.11", "did you mean 'layers.1'?"),
        ("hiden", "did you mean 'hidden'?"),
        ("layers.", "did you mean"),
        ("", ""),
    ],
)
def test_a_misspelt_fixed_module(path, advice):
    with pytest.raises(TraceError, match=re.escape(f"unknown module in fixed '{path}'; {advice}")):
        trace_channels(MIXED.build(), images(batch=1), fixed=["layers.0", path])


def test_a_misspelt_unknown():
    with pytest.raises(TraceError, match="unknown value of unknown 'rise'; did you mean 'raise'"):
        trace_channels(MIXED.build(), images(batch=1), unknown="rise")


class Embedded(nn.Module):
    """Adds a view of a second input, which has no channel axis, to the channels."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.three = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x, vector):
        return self.three(self.two(self.one(x) + vector.view(1, 6, 1, 1)))


def test_a_tensor_without_channels_that_meets_channels_is_named_as_their_reason():
    inputs = (torch.zeros(1, 3, 2, 2), torch.zeros(6))
    graph = trace_channels(Embedded(), inputs, unknown="raise")
    assert {g.name: g.fixed for g in graph.groups if g.name != "three"} == {
        "one": "add (add): combined with the network's input",
        "two": None,
    }


def test_an_operation_that_touches_nothing_is_not_named():
    class Net(Embedded):
        def forward(self, x, vector):
            return self.three(self.one(x)), vector.view(6, 1).cos()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        graph = trace_channels(Net(), (torch.zeros(1, 3, 2, 2), torch.zeros(6)))
    assert graph.unsupported == ()


def test_what_happens_to_the_input_is_not_named():
    class Net(Embedded):
        def forward(self, x):
            return self.three(self.one(x.flip(1) / 255))

    graph = trace_channels(Net(), torch.zeros(1, 3, 2, 2), unknown="raise")
    assert [g.name for g in graph.prunable] == ["one"]


class Auxiliary(nn.Module):
    """A second classifier in training mode, and a branch that is coupled there only."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.three = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 1), nn.Conv2d(4, 2, 1)
        self.aux, self.last = nn.Conv2d(6, 5, 1), nn.Conv2d(5, 2, 1)

    def forward(self, x):
        x = self.one(x)
        y = self.three(self.two(x))
        return (y, self.last(self.aux(x))) if self.training else y


def test_what_runs_in_training_mode_only_is_coupled_and_kept():
    graph = trace_channels(Auxiliary(), torch.zeros(1, 3, 2, 2))
    assert {g.name: g.fixed for g in graph.groups} == {
        "one": None,
        "two": None,
        "three": "the network's output",
        "aux": "used in training only",
        "last": "the network's output",
    }
    assert ("aux.weight", 1) in [(m.parameter, m.axis) for m in graph.groups[0].members]
    assert graph.costs.macs([[6, 4]])[0] == 4 * (18 + 24 + 8)


def test_a_network_that_cannot_be_traced_in_training_mode_is_taken_as_it_is():
    class Net(Auxiliary):
        def forward(self, x):
            if self.training:
                raise NotImplementedError
            return self.three(self.two(self.one(x)))

    assert [g.name for g in trace_channels(Net(), torch.zeros(1, 3, 2, 2)).prunable] == [
        "one",
        "two",
    ]


def test_inputs_that_are_no_batches():
    class Scaled(Auxiliary):
        def forward(self, scale, x):
            return self.three(self.two(self.one(x) * scale))

    graph = trace_channels(Scaled(), (2.0, torch.zeros(3, 3, 2, 2)))
    assert [g.name for g in graph.prunable] == ["one", "two"]
    assert graph.costs.macs([[6, 4]])[0] == 4 * (18 + 24 + 8)


def test_the_outputs_of_a_transposed_convolution_are_fixed():
    layers = [nn.Conv2d(3, 5, 1), nn.ConvTranspose2d(5, 4, 2, bias=False), nn.Conv2d(4, 2, 1)]
    graph = trace_channels(nn.Sequential(*layers), torch.zeros(1, 3, 4, 4), fixed=["1"])
    assert {group.name: group.fixed for group in graph.groups} == {
        "0": None,
        "1": "fixed by the caller",
        "2": "the network's output",
    }
