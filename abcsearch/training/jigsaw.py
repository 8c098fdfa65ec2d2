"""Images cut and put together anew: what CURL enlarges small data by."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention

_TILES = (2, 3, 4)  # of a row
_BLANKED = (0.2, 0.5)  # of the width


def changed(images: torch.Tensor, share: float) -> torch.Tensor:
    """Returns images, of which some are changed: tiles in another order, a square blanked, or turned, alike often each.

    Draws come from torch's global generator on the CPU, so that all devices have the same.

    Args:
        images: (batch, channels, height, width) on any device.
        share: chance in [0, 1] that an image is changed; CURL's six versions of every image are 5 / 6.

    Source: Luo and Wu, Neural network pruning with residual-connections and limited-data (CVPR 2020), section 3.3.
    """
    kinds = torch.randint(len(_TILES) + 2, (len(images),)).tolist()
    picked = (torch.rand(len(images)) < share).tolist()
    rows = [
        _version(image, kind) if chosen else image
        for image, kind, chosen in zip(images, kinds, picked, strict=True)
    ]
    return torch.stack(rows).contiguous(memory_format=torch.channels_last)


def versions(images: torch.Tensor) -> list[torch.Tensor]:
    """Returns each of CURL's five changes of all images, (batch, channels, height, width) each; draws as `changed`."""
    kinds = range(len(_TILES) + 2)
    return [torch.stack([_version(image, kind) for image in images]) for kind in kinds]


def _version(image: torch.Tensor, kind: int) -> torch.Tensor:
    if kind < len(_TILES):
        return shuffled_tiles(image, torch.randperm(_TILES[kind] ** 2))
    return (
        blanked(image, torch.rand(3))
        if kind == len(_TILES)
        else turned(image, float(360 * torch.rand(())))
    )


def shuffled_tiles(image: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Returns a (channels, height, width) image whose tiles are in another order; rows and columns over stay.

    Args:
        image: the image.
        order: (n * n,) which tile comes to every place, row by row.
    """
    side = math.isqrt(len(order))
    high, wide = image.shape[1] // side, image.shape[2] // side
    result = image.clone()
    if not min(high, wide):
        return result
    for index, tile in enumerate(order.tolist()):
        (row, column), (y, x) = divmod(index, side), divmod(tile, side)
        source = image[:, y * high : (y + 1) * high, x * wide : (x + 1) * wide]
        result[:, row * high : (row + 1) * high, column * wide : (column + 1) * wide] = source
    return result


def blanked(image: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Returns a (channels, height, width) image with a square of zeros, 0.2 to 0.5 of its width.

    Args:
        image: the image.
        draws: (3,) in [0, 1): size, and where its upper left corner is.
    """
    size, down, right = draws.tolist()
    low, high = _BLANKED
    side = min(round((low + (high - low) * size) * image.shape[2]), *image.shape[1:])
    top, left = (
        int(where * (room - side + 1))
        for where, room in zip((down, right), image.shape[1:], strict=True)
    )
    result = image.clone()
    result[:, top : top + side, left : left + side] = 0
    return result


def turned(image: torch.Tensor, degrees: float) -> torch.Tensor:
    """Returns a (channels, height, width) image turned about its middle; zeros come in."""
    angle = math.radians(degrees)
    ratio = image.shape[1] / image.shape[2]
    cos, sin = math.cos(angle), math.sin(angle)
    # In units of half the height and half the width, in which grids are.
    matrix = torch.tensor(
        [[[cos, -sin * ratio, 0.0], [sin / ratio, cos, 0.0]]],
        device=image.device,
        dtype=image.dtype,
    )
    grid = F.affine_grid(matrix, [1, *image.shape], align_corners=False)
    return F.grid_sample(image[None], grid, align_corners=False)[0]
