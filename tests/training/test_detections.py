"""The objective of detectors: post-processing, COCO's metric, and the losses of both kinds of detectors."""

import pytest
import torch
from torch import nn

from abcsearch import OUTPUTS, Recipe, finetune, score, train
from abcsearch.data.boxes import packed
from abcsearch.data.split import Split
from abcsearch.data.splits import Data
from abcsearch.errors import ConfigError, DataError, ModelError
from abcsearch.training import detections
from abcsearch.training.detections import DETECTION, constant_detections, output_of
from abcsearch.training.lesson import Supervised

pytest.importorskip("torchmetrics", reason="mAP needs the extra `detection`")
pytest.importorskip("pycocotools", reason="mAP needs the extra `detection`")

TARGETS = [
    {"boxes": [[0, 0, 10, 10], [10, 10, 20, 20]], "labels": [1, 2]},
    {"boxes": [[5, 5, 15, 15]], "labels": [1]},
    {"boxes": [], "labels": []},
]


def split(targets=TARGETS):
    return Split(torch.zeros(len(targets), 3, 20, 20), packed(targets))


class Says(nn.Module):
    """Returns given detections, image after image."""

    def __init__(self, every):
        super().__init__()
        self.every, self.shown = every, 0

    def forward(self, x):
        self.shown += len(x)
        return self.every[self.shown - len(x) : self.shown]


def said(boxes, labels, scores):
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "scores": torch.tensor(scores, dtype=torch.float32),
    }


def perfect():
    return [said(own["boxes"], own["labels"], [0.9] * len(own["labels"])) for own in TARGETS]


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_who_finds_all_has_one_and_who_finds_nothing_zero(batch_size):
    found = score(Says(perfect()), split(), objective="detection", batch_size=batch_size)
    assert found == {"mAP": pytest.approx(1), "mAP50": pytest.approx(1), "mAP75": pytest.approx(1)}
    nothing = [said([], [], [])] * 3
    assert set(score(Says(nothing), split(), objective="detection").values()) == {0.0}


def test_average_precision_by_hand():
    # Class 2 is found. Of class 1 the box of the second image is 4 pixels off: its overlap is 60 / 140 = 0.43; a wrong
    # one with the best score comes before the right one: precision is 1/2 up to a recall of 1/2, 0 beyond.
    every = perfect()
    every[0] = said(
        [[0, 0, 10, 10], [10, 10, 20, 20], [10, 0, 20, 10]], [1, 2, 1], [0.8, 0.9, 0.95]
    )
    every[1] = said([[9, 5, 19, 15]], [1], [0.7])
    found = score(Says(every), split(), objective="detection")
    of_class_1 = 51 / 101 * 0.5  # of the 101 recalls that COCO looks at, those up to 0.5
    assert found["mAP50"] == pytest.approx((1 + of_class_1) / 2, abs=1e-6)
    # One pixel off instead: an overlap of 90 / 110 = 0.82, right up to 0.8, 7 of the 10 overlaps.
    every = perfect()
    every[1] = said([[6, 5, 16, 15]], [1], [0.9])
    found = score(Says(every), split(), objective="detection")
    assert found["mAP75"] == pytest.approx(1)
    wrong = (1 + 51 / 101) / 2  # of equal scores the first image's counts first
    assert found["mAP"] == pytest.approx((7 * 1 + 3 * wrong) / 10, abs=1e-6)


def test_crowds_are_neither_missed_nor_wrong():
    crowd = {"boxes": [[0, 0, 20, 20]], "labels": [1], "iscrowd": [1]}
    every = [*perfect()[:2], said([[1, 1, 5, 5], [9, 9, 15, 15]], [1, 1], [0.99, 0.98])]
    with_crowd = split([*TARGETS[:2], crowd])
    assert score(Says(every), with_crowd, objective="detection")["mAP"] == pytest.approx(1)
    assert score(Says(every), split(), objective="detection")["mAP"] < 0.9


def test_places_become_detections_as_a_slow_reference_has_them():
    from torchvision.ops import box_iou

    draws = torch.Generator().manual_seed(0)
    corners = torch.rand(4, 60, 2, generator=draws) * 30
    boxes = torch.cat([corners, corners + 2 + 8 * torch.rand(4, 60, 2, generator=draws)], dim=-1)
    scores = torch.rand(4, 60, 3, generator=draws) ** 4
    found = output_of(nn.Identity(), torch.cat([boxes, scores], dim=-1))
    assert found.classes == 3
    for number, own in enumerate(found):
        left = []
        order = sorted(
            ((float(scores[number, p, c]), p, c) for p in range(60) for c in range(3)), reverse=True
        )
        for value, place, label in order[:300]:
            near = [p for _, p, c in left if c == label]
            if value >= 0.05 and (
                not near or float(box_iou(boxes[number, [place]], boxes[number, near]).max()) <= 0.5
            ):
                left.append((value, place, label))
        assert own["labels"].tolist() == [label + 1 for _, _, label in left[:100]]
        assert torch.equal(own["boxes"], boxes[number, [place for _, place, _ in left[:100]]])
        assert own["scores"].tolist() == pytest.approx([value for value, _, _ in left[:100]])


def test_the_constant_answer_is_the_mean_box_of_every_class():
    (answer, again) = constant_detections(split().labels, 2)
    assert answer["labels"].tolist() == [1, 2]
    assert answer["boxes"].tolist() == [[2.5, 2.5, 12.5, 12.5], [10, 10, 20, 20]]
    assert answer["scores"].tolist() == pytest.approx([2 / 3, 1 / 3])
    assert again is answer


class Torchvisions(nn.Module):
    """As torchvision's detectors: losses for images and targets, detections for images alone."""

    def __init__(self, classes=3):
        super().__init__()
        self.classes, self.bias, self.seen = classes, nn.Parameter(torch.zeros(classes, 4)), []

    def forward(self, images, targets=None):
        if not self.training:
            everywhere = {
                "boxes": self.bias,
                "labels": torch.arange(self.classes) + 1,
                "scores": torch.ones(self.classes),
            }
            return [everywhere] * len(images)
        if targets is None:
            raise ValueError("targets should not be none when in training mode")
        self.seen.append(
            [{key: value.clone() for key, value in target.items()} for target in targets]
        )
        boxes, labels = (
            torch.cat([target[key] for target in targets]) for key in ("boxes", "labels")
        )
        far = (self.bias[labels - 1] - boxes).square().mean() if len(boxes) else self.bias.sum() * 0
        return {"box": far, "nothing": self.bias.sum() * 0}


def test_losses_of_torchvisions_kind_are_summed_and_learned():
    network, data = (
        Torchvisions(),
        split([*TARGETS[:1], {"boxes": [[0, 0, 10, 10]], "labels": [1], "iscrowd": [1]}]),
    )
    trained = train(
        network,
        data,
        Recipe(epochs=60, batch_size=2, lr=0.2, weight_decay=0),
        objective="detection",
    )
    assert trained.losses[0] == pytest.approx((50 + 250) / 2)
    assert trained.losses[-1] < 1
    assert set(network.seen[0][0]) == {"boxes", "labels"}
    assert sorted(len(own["boxes"]) for own in network.seen[0]) == [0, 2]  # no crowd is learned
    assert torch.allclose(network.bias[1], torch.tensor([10.0, 10, 20, 20]), atol=1)


class Criterion(nn.Module):
    """With a criterion of its own: boxes and scores of two places."""

    def __init__(self, classes=2, outputs=None):
        super().__init__()
        self.places = nn.Parameter(
            torch.tensor([[0.0, 0, 10, 10, *[0.9] * classes], [5, 5, 15, 15, *[0.8] * classes]])
        )
        self.classes, self.outputs = classes, outputs

    def forward(self, x):
        return self.places.expand(len(x), -1, -1) if self.outputs is None else self.outputs(x)

    def losses(self, outputs, targets):
        assert len(outputs) == len(targets)
        return {"all": outputs.square().mean()}


def test_a_criterion_of_the_network_is_learned():
    trained = train(
        Criterion(), split(), Recipe(epochs=3, batch_size=3, lr=0.01), objective="detection"
    )
    assert trained.losses[-1] < trained.losses[0]
    assert set(score(Criterion(), split(), objective="detection")) == {"mAP", "mAP50", "mAP75"}


def test_a_label_beyond_the_classes_is_named_before_it_is_trained_or_scored():
    said_so = r"label 2 has no output: the model has 1 class of objects, counted from 1"
    with pytest.raises(DataError, match=said_so):
        score(Criterion(classes=1), split(), objective="detection")
    with pytest.raises(DataError, match=said_so):
        train(Criterion(classes=1), split(), Recipe(epochs=1, batch_size=3), objective="detection")
    with pytest.raises(
        ModelError, match=r"fails, IndexError: .*on \(images, targets\).*labels go up to 2"
    ):
        train(
            Torchvisions(classes=1), split(), Recipe(epochs=1, batch_size=3), objective="detection"
        )


@pytest.mark.parametrize(
    ("returned", "named"),
    [
        (torch.zeros(3, 2), r"found \(3, 2\) torch.float32"),
        ([{"boxes": torch.zeros(1, 4)}] * 3, "found list of dict with boxes"),
        ({"logits": torch.zeros(3, 2)}, "found dict with logits"),
        (None, "found NoneType"),
    ],
)
def test_networks_that_return_something_else_are_told_what_to_return(returned, named):
    network = Criterion(outputs=lambda x: returned)
    with pytest.raises(
        ModelError,
        match=rf"(?s)list of dicts with boxes, labels and scores.*{named}.*OUTPUTS\[Criterion\]",
    ):
        score(network, split(), objective="detection")
    network.losses = lambda outputs, targets: {"all": outputs["all"]}
    with pytest.raises(
        ModelError,
        match=r"(?s)Criterion fails, .*on losses\(outputs, targets\), whose outputs were",
    ):
        train(network, split(), Recipe(epochs=1, batch_size=3), objective="detection")


def test_fewer_detections_than_images_and_no_losses_are_refused():
    with pytest.raises(ModelError, match="must return detections of 3 images, found 2"):
        score(Says(perfect()[:2]), split(), objective="detection")
    network = Torchvisions()
    network.forward = lambda images, targets=None: torch.zeros(3)
    with pytest.raises(ModelError, match=r"must return a dict of losses, scalars.*found"):
        train(network, split(), Recipe(epochs=1, batch_size=3), objective="detection")


def test_outputs_say_which_part_the_detections_are():
    network = Says([{"all": own} for own in perfect()])
    OUTPUTS[Says] = lambda returned: [own["all"] for own in returned]
    try:
        assert score(network, split(), objective="detection")["mAP"] == pytest.approx(1)
    finally:
        del OUTPUTS[Says]


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torchmetrics.detection", None)
    with pytest.raises(ConfigError, match=r"pip install 'abcsearch\[detection\]'"):
        score(Criterion(), split(), objective="detection")


def test_the_loss_is_not_asked_for_by_itself():
    with pytest.raises(ConfigError, match="the loss of a detector is its own"):
        DETECTION.loss(None, None)
    lesson = Supervised(Criterion(), objective="detection")
    lesson.begin(Recipe(), split())
    assert lesson.step(torch.zeros(3, 3, 20, 20), split().labels, torch.Generator()).requires_grad


def test_the_whole_of_fine_tuning():
    data = Data(
        name="boxes", train=split(), validation=split(), test=split(), objective="detection"
    )
    tuned = finetune(Torchvisions(), data, Recipe(epochs=2, batch_size=3, lr=0.1))
    assert set(tuned.before) == set(tuned.after) == {"mAP", "mAP50", "mAP75"}
    assert tuned.hits is None
    assert len(tuned.training.scores) == 2
    assert detections.DETECTION.headline == "mAP"
