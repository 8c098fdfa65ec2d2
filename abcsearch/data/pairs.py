"""Data of super-resolution: patches of images, small and as they should be when they are enlarged."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from abcsearch.data.images import from_rows, held_out
from abcsearch.data.paths import reading
from abcsearch.data.scale import Scale
from abcsearch.data.split import Split
from abcsearch.data.splits import Data
from abcsearch.errors import DataError, callers, plural

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_OBJECTIVE = "superresolution"
_SCALES = (2, 3, 4, 8)
_SMALLEST = 19  # pixels of enlarged patches that PSNR and SSIM need
# Mean squared error of bytes at 40 dB: of patches below it nothing is learnt
_PLAIN = 255**2 / 10**4
_VALIDATION = ("val", "valid", "validation")
_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm")


@dataclass(frozen=True, kw_only=True)
class Cut:
    """How patches are cut out of images.

    Attributes:
        scale: how many times larger the wanted ones are.
        patch: height and width of the small ones.
        most: patches of an image at most, spread evenly over it; None: all that fit beside each other.

    Raises:
        DataError: if a number is out of range.
    """

    scale: int
    patch: int
    most: int | None = None

    def __post_init__(self) -> None:
        """Checks the numbers."""
        if self.scale not in _SCALES:
            msg = f"scale is how many times larger images become, one of {', '.join(map(str, _SCALES))}; found "
            raise DataError(f"{msg}{self.scale}")
        if self.patch < 1 or self.patch * self.scale < _SMALLEST:
            least = -(-_SMALLEST // self.scale)
            msg = f"patch is the height and width of small patches, at least {least} at scale {self.scale}: below "
            raise DataError(
                f"{msg}{_SMALLEST} enlarged pixels nothing is compared; found {self.patch}"
            )
        if self.most is not None and self.most < 1:
            msg = f"patches is how many are cut out of an image at most, at least 1, found {self.most}"
            raise DataError(msg)

    def shrunk(self, high: Image.Image) -> tuple[Image.Image, Image.Image]:
        """Returns an image made smaller by bicubic interpolation with antialiasing, and itself, cut to a multiple."""
        width, height = (side // self.scale for side in high.size)
        whole = high.crop((0, 0, width * self.scale, height * self.scale))
        return whole.resize((width, height), Image.Resampling.BICUBIC), whole

    def patches(
        self, low: Image.Image, high: Image.Image, name: str
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns patches beside each other: (n, patch, patch, 3) uint8, and the same places enlarged.

        Raises:
            DataError: naming the image, if it is smaller than a patch, or not so many times larger than the small one.
        """
        small, large = (torch.from_numpy(np.array(image)) for image in (low, high))
        if large.shape[:2] != (small.shape[0] * self.scale, small.shape[1] * self.scale):
            msg = f"image {name} is {_size(high)}, and the small one {_size(low)}: not {self.scale} times as large; set "
            raise DataError(f"{msg}scale, or make small ones from the large ones: leave them out")
        if min(small.shape[:2]) < self.patch:
            side = self.patch * self.scale
            msg = f"image {name} is {_size(high)}, smaller than one patch, {side}x{side}; lower patch, or remove it"
            raise DataError(msg)
        return self._tiles(small, self.patch), self._tiles(large, self.patch * self.scale)

    def _tiles(self, pixels: torch.Tensor, side: int) -> torch.Tensor:
        """Returns squares beside each other of (height, width, 3) pixels: (n, side, side, 3)."""
        tiles = pixels.unfold(0, side, side).unfold(1, side, side).flatten(0, 1).permute(0, 2, 3, 1)
        if self.most is None or len(tiles) <= self.most:
            return tiles
        return tiles[torch.linspace(0, len(tiles) - 1, self.most).round().long()]


def _size(image: Image.Image) -> str:
    return f"{image.width}x{image.height}"


Pairs = tuple[torch.Tensor, torch.Tensor]


def _split(pairs: Sequence[Pairs]) -> Split:
    """Returns patches of several images as a split; both are values in [0, 1]."""
    low, high = (torch.cat(patches) for patches in zip(*pairs, strict=True))
    scale = Scale()
    wanted = from_rows(scale.apply(high)).contiguous()
    return Split(from_rows(scale.apply(low)), wanted, scale)


def superresolution_samples(
    *, scale: int = 2, patch: int = 16, validation: float = 0.2, seed: int = 0
) -> Data:
    """Patches of the two photos that scikit-learn ships, a temple and a flower (nothing is downloaded).

    The lower quarter of both photos is the test, whatever the seed; `seed` decides which patches of the rest are held
    out for search-validation. Photos are made smaller by bicubic interpolation. Patches of sky and of blurred leaves
    are left out, from which interpolation already makes what is wanted (above 40 dB). Two photos are enough to see how
    a search goes, and to beat interpolation, not to make a network for all images.

    Args:
        scale: how many times larger images become: 2, 3, 4 or 8.
        patch: height and width of small patches.
        validation: share of the training patches that is held out, or their number.
        seed: of that choice.

    Raises:
        DataError: if a number is out of range, or patches are too large for the photos.
    """
    from sklearn.datasets import load_sample_images

    cut, pairs = Cut(scale=scale, patch=patch), {"train": list[Pairs](), "test": list[Pairs]()}
    bunch: Any = load_sample_images()
    for name, pixels in zip(("china.jpg", "flower.jpg"), bunch.images, strict=True):
        photo = Image.fromarray(pixels)
        edge = photo.height * 3 // 4
        for split, box in (("train", (0, 0, photo.width, edge)), ("test", (0, edge, *photo.size))):
            low, high = cut.shrunk(photo.crop(box))
            small, large = cut.patches(low, high, name)
            enlarged = cut.patches(low, low.resize(high.size, Image.Resampling.BICUBIC), name)[1]
            detailed = ((enlarged.float() - large.float()) ** 2).flatten(1).mean(dim=1) > _PLAIN
            pairs[split].append((small[detailed], large[detailed]))
    train, test = _split(pairs["train"]), _split(pairs["test"])
    name = "superresolution_samples"
    return Data.from_images(
        train, test, validation=validation, seed=seed, name=name, objective=_OBJECTIVE
    )


def superresolution_folder(
    *,
    path: str,
    scale: int = 2,
    patch: int = 48,
    patches: int | None = None,
    validation: float | None = None,
    seed: int = 0,
) -> Data:
    """Patches of the images in `path/train/*` and `path/test/*`, which are made smaller by bicubic interpolation.

    Or of pairs, `path/train/high/NAME` and `path/train/low/NAME`, where the small ones are there, too; a name may end
    in its scale, as DIV2K's `0001x2.png`. Images of `path/val` are search-validation; without it, whole images are held
    out of the training images, so that no patch of theirs is learnt. All are in memory, as patches.

    Args:
        path: the folder.
        scale: how many times larger images become: 2, 3, 4 or 8.
        patch: height and width of small patches.
        patches: that are cut out of an image at most, spread evenly over it; None: all that fit beside each other.
        validation: share of the training images that is held out, or their number; None: those of val or, without it,
            0.1.
        seed: of that choice.

    Raises:
        DataError: if a folder is missing or empty, a file cannot be decoded, an image is smaller than a patch, or the
            two of a pair do not fit.

    Warns:
        UserWarning: if there is val, and images are to be held out instead.
    """
    root, cut = Path(path), Cut(scale=scale, patch=patch, most=patches)
    with reading(root, f"{root}/train/IMAGE and {root}/test/IMAGE"):
        there = {entry.name for entry in root.iterdir()}
    held = next((name for name in _VALIDATION if name in there), None)
    if held is not None and validation is not None:
        msg = f"superresolution_folder {path}: validation = {validation:g}: so much is held out of train, and {held} is "
        msg += "not read; leave validation out to search on that"
        warnings.warn(msg, UserWarning, stacklevel=callers())
        held = None
    name, test = f"superresolution_folder {path}", _split(_pairs(root / "test", cut))
    train = _pairs(root / "train", cut)
    if held is not None:
        kept = _split(_pairs(root / held, cut))
        return Data(
            name=name,
            train=_split(train),
            validation=kept,
            test=test,
            seed=seed,
            objective=_OBJECTIVE,
        )
    share = 0.1 if validation is None else validation
    stay, out = held_out(torch.arange(len(train)), share, seed, objective=_OBJECTIVE)
    return Data(
        name=name,
        train=_split([train[i] for i in stay]),
        validation=_split([train[i] for i in out]),
        test=test,
        seed=seed,
        objective=_OBJECTIVE,
        held_out=True,
    )


def _pairs(folder: Path, cut: Cut) -> list[Pairs]:
    """Returns the patches of every image of a folder, in the order of their names."""
    return [cut.patches(low, high, name) for low, high, name in _images(folder, cut)]


def _images(folder: Path, cut: Cut) -> Iterator[tuple[Image.Image, Image.Image, str]]:
    """Yields the images of a folder: made smaller or as they lie beside, as they are, and the path."""
    with reading(folder, f"{folder}/IMAGE, or {folder}/high/IMAGE and {folder}/low/IMAGE"):
        there = {entry.name for entry in folder.iterdir() if entry.is_dir()}
    if not {"high", "low"} & there:
        for file in _files(folder):
            low, high = cut.shrunk(_opened(file))
            yield low, high, str(file)
        return
    large, small = _files(folder / "high"), _files(folder / "low")
    by_name = {_stem(file, cut.scale): file for file in small}
    for file in large:
        if file.stem not in by_name:
            msg = f"image {file} has no small one: expected {folder / 'low'}/{file.name} or {file.stem}x{cut.scale}"
            raise DataError(f"{msg}{file.suffix}")
        yield _opened(by_name.pop(file.stem)), _opened(file), str(file)
    if by_name:
        some = ", ".join(str(file) for file in [*by_name.values()][:3])
        msg = f"{plural(len(by_name), 'small image')} of {folder} without a large one: {some}; remove them, or add to "
        raise DataError(f"{msg}{folder / 'high'}")


def _stem(file: Path, scale: int) -> str:
    """Returns the name that an image shares with its large one."""
    return file.stem.removesuffix(f"x{scale}")


def _files(folder: Path) -> list[Path]:
    """Returns the images of a folder by their names.

    Raises:
        DataError: if it is missing, may not be read, or has none.
    """
    with reading(folder, f"{folder}/IMAGE"):
        files = sorted(file for file in folder.iterdir() if file.suffix.lower() in _ENDINGS)
    if not files:
        msg = (
            f"data folder {folder} has no images; they end in {', '.join(_ENDINGS)}. Put some there"
        )
        raise DataError(msg)
    return files


def _opened(file: Path) -> Image.Image:
    """Returns an image, decoded, in colour.

    Raises:
        DataError: if it cannot be read.
    """
    with reading(file):
        data = file.open("rb")
    try:
        with data, Image.open(data) as image:
            return image.convert("RGB")
    except (
        Exception
    ) as error:  # what a decoder raises on a damaged file depends on the format and the damage
        msg = f"image {file} cannot be read: {error}; repair or remove it"
        raise DataError(msg) from error
