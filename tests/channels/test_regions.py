"""Costs where the batch is not the image: heads per region, several inputs, none; counted as a real forward pass is.

The oracle is torch's own counter of the full and of the sliced network, on the same example.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from abcsearch.channels.decisions import Decisions
from abcsearch.channels.groups import trace_channels
from abcsearch.channels.ranking import rank_channels
from abcsearch.channels.selfcheck import misfits
from abcsearch.channels.slicing import slice_model
from abcsearch.example import Example
from abcsearch.rng import torch_seeded
from tests.channels.zoo import layer_macs

pytestmark = pytest.mark.filterwarnings("ignore::abcsearch.channels.groups.UnsupportedOpWarning")


def flops(network, example):
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        example.run(network)
    return counter.get_total_flops() // 2


def check(network, example, images=1, count=flops, single=None):
    """Compares macs of the full and of a sliced network with those that are counted, per image."""
    network = network.eval()
    graph = trace_channels(network, example)
    full = [group.channels for group in graph.prunable]
    assert full
    widths = [max(1, channels * 2 // 3) for channels in full]
    sliced = slice_model(network, graph, widths, rank_channels(network, graph, "l1"))
    one = example if single is None else single
    expected = [count(network, one) / images, count(sliced, one) / images]
    np.testing.assert_array_equal(graph.costs.macs([full, widths]), expected)
    return graph


class Regions(nn.Module):
    """Two stages: a map of scores says where the head looks, at the best few places; all of them in one batch."""

    def __init__(self, regions=5, threshold=None):
        super().__init__()
        self.body, self.scores = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 1, 1)
        self.first, self.second, self.out = nn.Linear(8 * 9, 12), nn.Linear(12, 6), nn.Linear(6, 4)
        self.regions, self.threshold = regions, threshold

    def forward(self, images):
        """Takes a list of images, as detectors do, or a batch."""
        maps = [torch.relu(self.body(image[None])) for image in images]
        return [self.looked(one) for one in maps]

    def looked(self, one):
        patches = F.unfold(one, 3, padding=1)[0].T
        scores = self.scores(one).flatten()
        if self.threshold is None:
            best = scores.topk(self.regions).indices
        else:
            best = (scores >= scores.quantile(self.threshold)).nonzero()[:, 0]
        return self.out(torch.relu(self.second(torch.relu(self.first(patches[best])))))


@settings(max_examples=8)
@given(st.integers(1, 9), st.integers(1, 3), st.integers(4, 8))
def test_heads_count_once_per_region_of_one_image(regions, count, size):
    images = [torch.rand(3, size, size + number) for number in range(count)]
    with torch_seeded(0, "regions"):
        network = Regions(regions)
    graph = check(network, Example((images,)), single=Example((images[:1],)))
    times = {call.weight: call.times for call in graph.calls}
    assert times["second.weight"] == regions


def test_a_single_image_without_an_axis_for_others_is_not_cut_by_its_channels():
    class One(nn.Module):
        """Normalises one image, which broadcasts; an image of one channel would run as well."""

        def __init__(self):
            super().__init__()
            self.inner, self.mean = Regions(threshold=0.7), torch.full((3, 1, 1), 0.5)

        def forward(self, image):
            return self.inner([image - self.mean])

    with torch_seeded(0, "one"):
        check(One(), Example((torch.rand(3, 7, 7),)))
        check(Regions(threshold=0.5), Example(([torch.rand(3, 7, 7)],)))


class Two(nn.Module):
    """An image and a sequence of rows, of which there may be another number."""

    def __init__(self):
        super().__init__()
        self.conv, self.rows, self.head = nn.Conv2d(3, 6, 3), nn.Linear(5, 9), nn.Linear(15, 7)
        self.last = nn.Linear(7, 2)

    def forward(self, image, rows):
        seen = torch.relu(self.conv(image)).mean((2, 3))
        both = torch.cat(
            [seen, torch.relu(self.rows(rows)).mean(dim=-2).expand(len(seen), -1)], dim=1
        )
        return self.last(torch.relu(self.head(both)))


@settings(max_examples=8)
@given(st.integers(1, 4), st.integers(1, 6), st.booleans())
def test_two_inputs_count_per_image_and_what_all_share_once(images, rows, shared):
    with torch_seeded(0, "two"):
        network = Two()
    table = torch.rand(rows + images, 5) if shared else torch.rand(images, rows, 5)
    image = torch.rand(images, 3, 6, 6)
    single = Example((image[:1], table if shared else table[:1]))
    check(network, Example((image, table)), single=single)


class Queries(nn.Module):
    """Layers that no input is in front of: what all images are compared with is computed from weights."""

    def __init__(self, insists=False):
        super().__init__()
        self.start, self.made, self.more = (
            nn.Parameter(torch.rand(10, 4)),
            nn.Linear(4, 12),
            nn.Linear(12, 6),
        )
        self.conv, self.read, self.insists = nn.Conv2d(3, 5, 3), nn.Linear(5, 6), insists

    def forward(self, x):
        if self.insists:
            x = x.reshape(2, 3, 6, 6)
        queries = self.more(torch.relu(self.made(self.start)))
        return self.read(torch.relu(self.conv(x)).mean((2, 3))) @ queries.T


def test_layers_without_an_input_count_once_however_many_images_there_are():
    with torch_seeded(0, "queries"):
        for images in (1, 2, 5):
            graph = trace_channels(Queries(), torch.rand(images, 3, 6, 6))
            times = {call.weight: call.times for call in graph.calls}
            assert (times["made.weight"], times["more.weight"]) == (10, 10)
        whole = trace_channels(Queries(insists=True), torch.rand(2, 3, 6, 6))
    times = {call.weight: call.times for call in whole.calls}
    assert (times["made.weight"], times["conv.weight"], times["read.weight"]) == (10, 16, 1)


class Pairs(nn.Module):
    """Insists on two images, of which a head looks at three places together: one and a half for each, rounded up."""

    def __init__(self):
        super().__init__()
        self.conv, self.head, self.last = nn.Conv2d(3, 4, 3), nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x):
        seen = torch.relu(self.conv(x.reshape(2, 3, 6, 6))).mean((2, 3))
        return self.last(torch.relu(self.head(torch.cat([seen, seen[:1] - seen[1:]]))))


def test_a_share_of_what_several_images_need_together_is_rounded_up():
    graph = trace_channels(Pairs(), torch.rand(2, 3, 6, 6))
    assert [call.times for call in graph.calls] == [16, 2, 2]


class Best(nn.Module):
    """Returns the values at its best places."""

    def __init__(self):
        super().__init__()
        self.conv, self.mix, self.places = (
            nn.Conv2d(3, 8, 1),
            nn.Conv2d(8, 2, 1),
            nn.Conv2d(3, 2, 1),
        )

    def forward(self, x):
        seen = torch.relu(self.conv(x))
        scores, values = self.mix(seen).flatten(1), self.places(x).flatten(1)
        best = scores.topk(4).indices
        return scores.gather(1, best), values.gather(1, best)


def test_decisions_are_taken_again_where_the_numbers_are_the_same():
    given = torch.tensor([3.0, 1.0, 3.0, 2.0])
    with Decisions() as first:
        assert given.topk(1).values == 3
    close, other = given + torch.tensor([0, 0, 1e-7, 0]), given + torch.tensor([0, 0, 1.0, 0])
    for numbers, expected in ((close, first.made[0].result[1]), (other, torch.tensor([2]))):
        with Decisions(first.made, torch.allclose):
            assert torch.equal(numbers.topk(1).indices, expected)


def test_the_check_does_not_take_decisions_for_an_excuse(monkeypatch):
    x = torch.rand(1, 3, 5, 5)
    network = Best().eval()
    graph = trace_channels(network, x, check=False)
    wrong = slice_model(network, graph, [3], rank_channels(network, graph, "l1"))
    with torch.no_grad():
        wrong.mix.weight.mul_(1.01)
    monkeypatch.setattr("abcsearch.channels.selfcheck.slice_model", lambda *_: wrong)
    assert misfits(network, graph, Example((x,)))


def detectors():
    from torchvision.models import detection

    options = {"weights": None, "weights_backbone": None}
    sized = {**options, "min_size": 64, "max_size": 64}
    # Regions that overlap all stay: how many did not would follow from the scores, and so from the widths.
    regions = {"rpn_pre_nms_top_n_test": 40, "rpn_post_nms_top_n_test": 40, "rpn_nms_thresh": 1.0}
    return {
        "two stages": lambda: detection.fasterrcnn_mobilenet_v3_large_320_fpn(**sized, **regions),
        "one stage": lambda: detection.ssdlite320_mobilenet_v3_large(**options),
        "focal loss": lambda: detection.retinanet_resnet50_fpn(**sized),
    }


@pytest.mark.zoo
@pytest.mark.parametrize("name", ["two stages", "one stage", "focal loss"])
def test_detectors_of_torchvision_count_as_they_run(name):
    with torch_seeded(0, name):
        network = detectors()[name]()
        images = [torch.rand(3, 64, 64), torch.rand(3, 48, 64)]
    check(
        network,
        Example((images,)),
        count=lambda n, x: layer_macs(n, x.args[0]),
        single=Example((images[:1],)),
    )
