"""The data set that needs no download."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from abcsearch.data.scale import Scale
from abcsearch.data.split import Split
from abcsearch.data.splits import Data


def digits(*, validation: float = 0.25, seed: int = 0) -> Data:
    """1 797 real handwritten digits, 8x8 grey (UCI, shipped with scikit-learn; nothing is downloaded).

    The test set is fixed (every seed has the same 360 images); `seed` decides which training images are held out for
    search-validation.

    Args:
        validation: share of the 1 437 training images that is held out, or their number.
        seed: of that choice.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch: Any = load_digits()
    images = torch.from_numpy(bunch.images.astype(np.float32))[:, None]
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    train, test = train_test_split(
        np.arange(len(labels)), test_size=360, stratify=labels.numpy(), random_state=0
    )
    mean, std = images[train].mean(), images[train].std()
    images = (images - mean) / std
    scale = Scale(mean=(float(mean) / 16,), std=(float(std) / 16,))  # pixels are 0 to 16
    return Data.from_images(
        Split(images[train], labels[train], scale),
        Split(images[test], labels[test], scale),
        validation=validation,
        seed=seed,
        name="digits",
    )
