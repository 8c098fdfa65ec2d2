"""The small detector: coding of boxes, anchors, what is assigned to whom, and its losses."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from abcsearch.channels.groups import trace_channels
from abcsearch.channels.ranking import rank_channels
from abcsearch.channels.slicing import slice_model
from abcsearch.errors import ModelError
from abcsearch.models.registry import INPUT_SHAPES, Constructor
from abcsearch.models.ssd import TinySSD, assign, decoded, encoded, make_anchors
from abcsearch.rng import torch_seeded


def network(**options):
    return Constructor(name="tiny_ssd", options={"width": 4, "size": 32, **options}).build()


def boxes_of(seed, count, size=32.0):
    draws = torch.Generator().manual_seed(seed)
    first = torch.rand(count, 2, generator=draws) * size * 0.7
    return torch.cat(
        [first, first + 2 + torch.rand(count, 2, generator=draws) * (size * 0.3 - 2)], dim=1
    )


@settings(max_examples=20)
@given(st.integers(0, 999))
def test_boxes_come_back_from_their_offsets(seed):
    anchors = make_anchors(32)
    boxes = boxes_of(seed, len(anchors))
    assert torch.allclose(decoded(encoded(boxes, anchors), anchors), boxes, atol=1e-3)
    assert torch.allclose(decoded(torch.zeros_like(anchors), anchors), anchors, atol=1e-4)


def test_offsets_are_those_of_the_paper():
    anchor, box = torch.tensor([[0.0, 0, 10, 20]]), torch.tensor([[5.0, 0, 15, 40]])
    # The middle is 5 of 10 to the right and 10 of 20 down, the height twice as large: over 0.1 and 0.2.
    wanted = torch.tensor([[5.0, 5.0, 0.0, 5 * torch.tensor(2.0).log()]])
    assert torch.allclose(encoded(box, anchor), wanted)


def test_anchors_cover_the_image_in_the_order_of_the_outputs():
    anchors = make_anchors(64)
    assert anchors.shape == (2 * (8 * 8 + 4 * 4), 4)
    middles, sides = (anchors[:, :2] + anchors[:, 2:]) / 2, anchors[:, 2:] - anchors[:, :2]
    # Along the row first, both anchors of a place
    assert middles[:4].tolist() == [[4, 4], [4, 4], [12, 4], [12, 4]]
    assert sorted({round(side, 3) for side, _ in sides.tolist()}) == pytest.approx(
        [12, 16.8, 24, 33.6]
    )
    # An output that stands out at one place of a feature map is that of the anchor in this place.
    model = network(size=64).eval()
    x = torch.zeros(1, 3, 64, 64)
    x[:, :, 40:48, 16:24] = 5  # around (20, 44), the place (2, 5) of the finer map
    with torch.no_grad():
        far = (model.raw(x) - model.raw(torch.zeros_like(x))).abs().sum(dim=-1)[0, :128]
    assert middles[int(far.argmax())].tolist() == pytest.approx([20, 44], abs=8)


@settings(max_examples=20)
@given(seed=st.integers(0, 999), count=st.integers(1, 4))
def test_every_object_has_an_anchor_and_the_others_are_near_or_none(seed, count):
    from torchvision.ops import box_iou

    anchors, boxes = make_anchors(32), boxes_of(seed, count)
    which, overlaps = assign(anchors, boxes), box_iou(anchors, boxes)
    best = overlaps.argmax(dim=0).tolist()
    assert len(set(which[which >= 0].tolist())) == len(set(best))
    for anchor, found in enumerate(which.tolist()):
        most = float(overlaps[anchor].max())
        if anchor in best:
            assert found == max(number for number in range(count) if best[number] == anchor)
        else:
            assert found == (
                int(overlaps[anchor].argmax()) if most >= 0.5 else -1 if most < 0.4 else -2
            )
    assert assign(anchors, torch.zeros(0, 4)).tolist() == [-1] * len(anchors)


def target(boxes, labels):
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
    }


def test_the_right_answer_has_hardly_a_loss_and_others_more():
    model = network()
    targets = [target([[2, 2, 14, 14], [16, 16, 31, 30]], [1, 3]), target([], [])]
    raw = torch.full((2, len(model.anchors), 7), -9.0)
    raw[..., :4] = 0
    which = assign(model.anchors, targets[0]["boxes"])
    for anchor, box in enumerate(which.tolist()):
        if box >= 0:
            raw[0, anchor, :4] = encoded(targets[0]["boxes"][[box]], model.anchors[[anchor]])
            raw[0, anchor, 3 + int(targets[0]["labels"][box])] = 9
    right = model.losses(raw, targets)
    assert set(right) == {"boxes", "classes"}
    assert float(sum(right.values())) < 1e-3
    elsewhere = raw.clone()
    elsewhere[1, 0, 4] = 9  # something where nothing is
    assert float(model.losses(elsewhere, targets)["classes"]) > 1
    far = raw.clone()
    far[..., :4] += 1
    # Four numbers, off by 1: 0.5 each
    assert float(model.losses(far, targets)["boxes"]) == pytest.approx(2.0)
    assert float(model.losses(raw, [target([], []), target([], [])])["boxes"]) == 0


def test_modes_agree_and_losses_reach_all_weights():
    model = network(depth=2)
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    raw = model.train()(x)
    assert raw.shape == (2, 2 * (16 + 4), 7)
    sum(model.losses(raw, [target([[2, 2, 14, 14]], [2])] * 2).values()).backward()
    assert [
        name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max()
    ] == []
    with torch.no_grad():
        out = model.eval()(x)
        raw = model.raw(x)
    assert torch.equal(out[..., 4:], raw[..., 4:].sigmoid())
    assert torch.allclose(encoded(out[..., :4], model.anchors), raw[..., :4], atol=1e-3)


def test_slices_keep_places_and_classes():
    with torch_seeded(0, "ssd"):
        model = network().eval()
    x = torch.rand(2, 3, 32, 32)
    graph = trace_channels(model, x)
    space = graph.space()
    assert len(space.dimensions) == 9
    candidate = space.uniform(0.5)
    slim = slice_model(model, graph, candidate, rank_channels(model, graph))
    assert slim(x).shape == model(x).shape
    assert sum(p.numel() for p in slim.parameters()) == int(graph.costs.params([candidate])[0])
    assert torch.equal(slim.anchors, model.anchors)


def test_sizes_that_cannot_be_are_refused():
    for options, said in (
        ({"size": 40}, "a multiple of 16 pixels, found 40"),
        ({"width": 0}, "found width=0"),
    ):
        with pytest.raises(ModelError, match=said):
            TinySSD(**options)
    assert TinySSD().eval()(torch.rand(1, *INPUT_SHAPES["tiny_ssd"])).shape == (1, 160, 7)
