"""Widths by how many directions the responses of a layer really have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from abcsearch.channels import energy
from abcsearch.channels.latency import torch_threads
from abcsearch.channels.pooling import response_covariances
from abcsearch.rng import torch_stream

if TYPE_CHECKING:
    from abcsearch.space import Candidate

_IMAGES = 256  # of the training split, without augmentation


def pfa_widths(task: Any) -> Candidate:  # noqa: ANN401 - a task, of the room that runs are in
    """Returns the largest structure inside the budget whose layers keep the same share of their responses' energy.

    A layer keeps as many channels as the largest eigenvalues of the covariance of its responses need to hold a share
    tau of their sum; tau is the largest, the same for all layers, that meets the budget. Which channels stay, the run's
    criterion says ("pfa" is that of the paper).

    Source: Suau et al., Principal Filter Analysis for Guided Network Compression (2018), section 3, PFA-En.

    Differences from the paper:
        - tau follows from the budget.
        - Responses are those that layers read, of 256 training images; see `response_covariances`.
    """
    order = torch.randperm(
        len(task.data.train), generator=torch_stream(task.settings.seed, "ranking images")
    )
    images = task.data.train.part(order[:_IMAGES]).loaded().images
    with torch_threads(1):
        covariances = response_covariances(
            task.source.model, task.graph, images, seed=task.settings.seed
        )
    return energy.pfa_widths(covariances, task.constraint)
