"""COCO's metric of images drawn with replacement: what pycocotools says of as many copies of each image."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from abcsearch.data.boxes import packed
from abcsearch.training.detections import Detections, MeanAveragePrecision

pytest.importorskip("torchmetrics", reason="mAP needs the extra `detection`")
pytest.importorskip("pycocotools", reason="mAP needs the extra `detection`")


def drawn_images(seed, n, classes=3):
    """Boxes of images, and detections that are near some of them."""
    draws = np.random.default_rng(seed)
    targets, detections = [], []
    for _ in range(n):
        count = draws.integers(0, 5)
        corner, size = draws.uniform(0, 60, (count, 2)), draws.uniform(5, 30, (count, 2))
        boxes = np.concatenate([corner, corner + size], axis=1)
        labels = draws.integers(1, classes + 1, count)
        crowd = draws.random(count) < 0.1
        targets.append({"boxes": boxes, "labels": labels, "iscrowd": crowd.astype(int)})
        seen = draws.integers(0, count + 1) if count else 0
        near = boxes[:seen] + draws.normal(0, 2, (seen, 4))
        extra = np.concatenate([corner[:1] + 1, corner[:1] + 9], axis=1)
        every = np.concatenate([near, extra])
        kinds = np.concatenate([labels[:seen], labels[:1] % classes + 1])
        detections.append(
            {
                "boxes": torch.tensor(every, dtype=torch.float32).reshape(-1, 4),
                "labels": torch.tensor(kinds, dtype=torch.int64),
                "scores": torch.tensor(draws.random(len(kinds)), dtype=torch.float32),
            }
        )
    targets[0] = {"boxes": [[1.0, 1, 20, 20]], "labels": [1]}
    return detections, packed(targets)


def metric_of(detections, labels):
    metric = MeanAveragePrecision()
    metric.add(Detections(detections), labels)
    return metric


@given(seed=st.integers(0, 10_000))
@settings(max_examples=4, deadline=None)
def test_it_is_that_of_copies_of_the_images(seed):
    detections, labels = drawn_images(seed, 9)
    metric = metric_of(detections, labels)
    counts = np.random.default_rng(seed).multinomial(9, [1 / 9] * 9, size=3)
    counts = np.concatenate([np.ones((1, 9), dtype=np.int64), counts])
    drawn = metric.resampled(counts)
    for row, times in enumerate(counts):
        rows = [image for image, count in enumerate(times) for _ in range(count)]
        wanted = metric_of([detections[image] for image in rows], labels[rows]).finish()
        assert {name: values[row] for name, values in drawn.items()} == pytest.approx(wanted)


def test_nothing_found_and_no_box_at_all(capsys):
    _, labels = drawn_images(0, 4)
    empty = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0)}
    nothing = [empty | {"labels": torch.zeros(0, dtype=torch.int64)}] * 4
    counts = np.ones((2, 4), dtype=np.int64)
    assert metric_of(nothing, labels).resampled(counts)["mAP"].tolist() == [0, 0]
    metric = MeanAveragePrecision()
    metric.add(Detections(nothing[:1]), torch.zeros_like(labels[:1]))
    assert metric.resampled(np.ones((2, 1), dtype=np.int64)) is None
    assert "DONE" not in capsys.readouterr().out


def test_more_images_change_what_is_drawn():
    detections, labels = drawn_images(3, 8)
    metric = metric_of(detections[:4], labels[:4])
    before = metric.resampled(np.ones((1, 4), dtype=np.int64))
    metric.add(Detections(detections[4:]), labels[4:])
    after = metric.resampled(np.ones((1, 8), dtype=np.int64))
    assert {name: values[0] for name, values in after.items()} == pytest.approx(metric.finish())
    assert before != after
