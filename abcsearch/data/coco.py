"""Images with boxes in COCO's format: a folder of images, and a JSON file that says what is where."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from PIL import Image

from abcsearch.data.boxes import packed
from abcsearch.data.folders import bytes_of
from abcsearch.data.images import held_out
from abcsearch.data.paths import reading
from abcsearch.data.pixels import HoldOut, byte_data, scale_of
from abcsearch.data.splits import Data
from abcsearch.data.stream import Stream
from abcsearch.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from abcsearch.data.stream import Transform

_LEAST = 1.0  # pixels of the resized image that a box is wide and high at least


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """An image of the file.

    Attributes:
        name: of its file, below the folder of images.
        width: in pixels.
        height: likewise.
    """

    name: str
    width: int
    height: int


class CocoImages:
    """The images of one split, as a map-style Dataset of (RGB image of PIL, 0).

    Attributes:
        classes: names by the number that COCO's file has for them, in the order of labels, which count from 1.
        labels: boxes of all images, resized as these are, packed (see `abcsearch.data.boxes`).
    """

    def __init__(self, root: Path, split: str, size: int) -> None:
        """Reads `root/annotations/instances_SPLIT.json`.

        Args:
            root: the folder that holds `annotations/` and the folders of images.
            split: name of the folder of images.
            size: height and width that images are resized to.

        Raises:
            DataError: if the file is missing, or not of COCO's format.
        """
        self._folder, self._file = root / split, root / "annotations" / f"instances_{split}.json"
        content = _read(self._file)
        wanted = {"categories": ("id", "name"), "images": ("id", "file_name", "width", "height")}
        wanted["annotations"] = ("image_id", "category_id", "bbox")
        tables = {name: self._table(content, name, keys) for name, keys in wanted.items()}
        self.classes = {
            entry["id"]: str(entry["name"]) for entry in sorted(tables["categories"], key=_id_of)
        }
        self._entries = {entry["id"]: self._entry(entry) for entry in tables["images"]}
        self._images = list(self._entries.values())
        if not self._images or not self.classes:
            msg = f"entries of images and of categories are in {self._file}, found {len(self._images)} and "
            msg += f"{len(self.classes)}"
            raise DataError(msg)
        self.labels = self._labels(tables["annotations"], size)

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self._images)

    def file(self, index: int) -> str:
        """Returns the path of an image."""
        return str(self._folder / self._images[index].name)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        """Returns an image, decoded."""
        entry = self._images[index]
        with Image.open(self.file(index)) as image:
            if image.size != (entry.width, entry.height):
                msg = f"it is {image.size[0]} wide and {image.size[1]} high, {self._file} says {entry.width} and "
                raise DataError(f"{msg}{entry.height}")
            return image.convert("RGB"), 0

    def _table(
        self, content: Mapping[str, Any], name: str, keys: tuple[str, ...]
    ) -> list[dict[str, Any]]:
        """Returns a list of the file, whose entries have all keys."""
        entries = content.get(name)
        if not isinstance(entries, list):
            msg = f"{self._file}: {name} is a list, found {'nothing' if entries is None else type(entries).__name__}; "
            raise DataError(f"{msg}it should be a file of COCO's format, instances_*.json")
        for number, entry in enumerate(entries):
            missing = [key for key in keys if not isinstance(entry, dict) or key not in entry]
            if missing:
                msg = f"{self._file}: {name}: number {number} (from 0) has {', '.join(keys)}; {missing[0]} is missing"
                raise DataError(msg)
            if "id" in keys and not isinstance(entry["id"], int):
                msg = f"{self._file}: {name}: number {number} (from 0): id is a whole number, found {entry['id']!r:.50}"
                raise DataError(msg)
        return entries

    def _entry(self, entry: Mapping[str, Any]) -> _Entry:
        """Returns an image of the file, whose name does not leave the folder of images."""
        name, width, height = entry["file_name"], entry["width"], entry["height"]
        sound = (
            isinstance(name, str)
            and name
            and not PurePosixPath(name).is_absolute()
            and ".." not in name.split("/")
        )
        if not sound or not all(isinstance(value, int) and value > 0 for value in (width, height)):
            msg = f"{self._file}: image {entry['id']}: file_name is a path below {self._folder}, width and height are "
            raise DataError(f"{msg}pixels; found {name!r:.80}, {width!r:.20} and {height!r:.20}")
        return _Entry(name=name, width=width, height=height)

    def _labels(self, annotations: list[dict[str, Any]], size: int) -> torch.Tensor:
        """Returns the boxes of all images, cut off at their edges; what is left of none is left out."""
        numbers = {category: number for number, category in enumerate(self.classes, start=1)}
        targets = {id_: {"boxes": [], "labels": [], "iscrowd": []} for id_ in self._entries}
        for number, entry in enumerate(annotations):
            where = f"{self._file}: annotations: number {number} (from 0)"
            if entry["image_id"] not in targets or entry["category_id"] not in numbers:
                msg = f"{where} is of image {entry['image_id']!r:.50} and category {entry['category_id']!r:.50}, one of "
                raise DataError(f"{msg}which is not in the file")
            box = _resized(entry["bbox"], self._entries[entry["image_id"]], size, where)
            if box[2] - box[0] >= _LEAST and box[3] - box[1] >= _LEAST:
                target = targets[entry["image_id"]]
                target["boxes"].append(box)
                target["labels"].append(numbers[entry["category_id"]])
                target["iscrowd"].append(int(entry.get("iscrowd", 0) == 1))
        return packed(list(targets.values()), str(self._file))


def _id_of(entry: Mapping[str, Any]) -> int:
    return entry["id"]


def _read(file: Path) -> Mapping[str, Any]:
    """Returns the table that a JSON file holds."""
    with reading(file, "COCO's annotations/instances_SPLIT.json"), file.open("rb") as lines:
        try:
            content: object = json.load(lines)
        except ValueError as error:  # no JSON, or no text
            msg = f"{file} is damaged, or no JSON: {error}"
            raise DataError(msg) from error
    if not isinstance(content, dict):
        msg = f"{file} is a table with images, annotations and categories, found {type(content).__name__}"
        raise DataError(msg)
    return content


def _resized(box: Any, entry: _Entry, size: int, where: str) -> list[float]:  # noqa: ANN401 - whatever a file holds
    """Returns x1, y1, x2, y2 in the resized image of COCO's x, y, width, height."""
    numbers = (
        isinstance(box, list)
        and len(box) == 4
        and all(type(value) in (int, float) for value in box)
    )
    if not numbers or not all(map(math.isfinite, box)) or min(box[2:]) < 0:
        msg = f"{where}: bbox is x, y, width, height in pixels, the last two at least 0, found {box!r:.80}"
        raise DataError(msg)
    x, y, width, height = box
    across, down = size / entry.width, size / entry.height
    corners = (x * across, y * down, (x + width) * across, (y + height) * down)
    return [min(max(value, 0.0), float(size)) for value in corners]


def coco(  # noqa: PLR0913 - options of a config
    *,
    path: str,
    train: str = "train2017",
    test: str = "val2017",
    size: int = 320,
    validation: float = 0.05,
    seed: int = 0,
    mean: Sequence[float] = (0.485, 0.456, 0.406),
    std: Sequence[float] = (0.229, 0.224, 0.225),
    stream: bool = True,
    workers: int | None = None,
) -> Data:
    """Boxes in COCO's format: `path/train2017/*.jpg`, `path/annotations/instances_train2017.json`, and so for val2017.

    Images are resized to one size, and their boxes with them; classes are numbered from 1 in the order of COCO's ids.
    Boxes are cut off at the edges of their images; those of less than a pixel are left out. Test images are those of
    val2017; search-validation is held out of the training images, and always in memory.

    Args:
        path: the folder that holds annotations and images.
        train: name of the training images' folder, and of their file after `instances_`.
        test: likewise of the test images.
        size: height and width to resize to.
        validation: share of the training images that is held out for search-validation, or their number.
        seed: of that choice.
        mean: per channel, of values in [0, 1]; by default that of ImageNet.
        std: likewise.
        stream: keeps images on disk; false decodes them once, into memory.
        workers: threads and processes that decode; None: one per core.

    Raises:
        DataError: if a file is missing or not of COCO's format, the splits have other classes, or an image cannot be
            decoded.
    """
    from torchvision.transforms import v2

    if size < 1:
        msg = f"coco: size is the height and width in pixels, at least 1, found {size}"
        raise DataError(msg)
    root, name, scale = Path(path), f"coco {path}", scale_of(mean, std, ((), ()))
    sources = [CocoImages(root, split, size) for split in (train, test)]
    if sources[0].classes != sources[1].classes:
        odd = sorted({*sources[0].classes.items()} ^ {*sources[1].classes.items()})
        msg = f"{path}: {train} and {test} have different categories: {odd[:5]}"
        raise DataError(msg)
    transform: Transform = v2.Compose([bytes_of, v2.Resize((size, size))])
    splits = [
        Stream(
            source=source, labels=source.labels, evaluation=transform, scale=scale, workers=workers
        )
        for source in sources
    ]
    how = HoldOut(validation=validation, seed=seed, objective="detection")
    if stream:
        return Data.from_images(
            *splits, validation=validation, seed=seed, name=name, objective=how.objective
        )
    # Refused before anything is decoded
    held_out(splits[0].labels, validation, seed, objective=how.objective)
    rows = [(images.decoded(), images.labels) for images in splits]
    return byte_data(name, rows[0], rows[1], scale, how)
