"""The data sets that have a name, without torch; see `abcsearch.data.registry`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from abcsearch.errors import DataError
from abcsearch.registry import Home, Registry

if TYPE_CHECKING:
    from collections.abc import Callable

    from abcsearch.data.splits import Data

_IN = "abcsearch.data"

# Name -> loader. `DATASETS["mine"] = load_mine` makes a data set known by name; an import path needs no entry.
DATASETS: Registry[Callable[..., Data]] = Registry(
    "data set",
    f"{__name__}:DATASETS",
    {
        "digits": Home(path=f"{_IN}.digits:digits"),
        "cifar10": Home(path=f"{_IN}.arrays:cifar10"),
        "cifar100": Home(path=f"{_IN}.arrays:cifar100"),
        "imagenet": Home(path=f"{_IN}.folders:imagenet"),
        "image_folder": Home(path=f"{_IN}.folders:image_folder"),
        "coco": Home(path=f"{_IN}.coco:coco"),
        "shapes": Home(path=f"{_IN}.shapes:shapes"),
        "npz": Home(path=f"{_IN}.arrays:npz"),
        "shape_masks": Home(path=f"{_IN}.shape_masks:shape_masks"),
        "shape_tags": Home(path=f"{_IN}.shape_masks:shape_tags"),
        "superresolution_samples": Home(path=f"{_IN}.pairs:superresolution_samples"),
        "superresolution_folder": Home(path=f"{_IN}.pairs:superresolution_folder"),
    },
    error=DataError,
)
