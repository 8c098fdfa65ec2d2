"""How close images come to those that were wanted: super-resolution, and whatever else returns images."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention

from abcsearch.errors import DataError, ModelError, plural
from abcsearch.training.distillation import of_images
from abcsearch.training.objectives import Objective

SHAVED = 4  # pixels at each edge that are not looked at: what lies beyond them is unknown to every method
_WINDOW, _SIGMA = 11, 1.5  # of SSIM
SMALLEST = 2 * SHAVED + _WINDOW  # height and width that both metrics need
_C1, _C2 = 0.01**2, 0.03**2
# Of red, green and blue in Y of YCbCr (ITU-R BT.601), from 16 to 235 of 255
_LUMA = (65.481, 128.553, 24.966)
_EXACT = 1e-10  # the least mean squared error: images that are the same have 100 dB


def luma(images: torch.Tensor) -> torch.Tensor:
    """Returns what is compared of (batch, channels, height, width) images: (batch, height, width) in [0, 1].

    That is Y of YCbCr of colour images, the channel itself of grey ones; of images as they are stored, clipped and
    rounded to bytes, without the 4 pixels at each edge.

    Source: as Lim et al. (EDSR, CVPR Workshops 2017) and most after them score Set5, Set14, B100 and Urban100, but that
    they leave out as many pixels as the scale says.
    """
    stored = (images.float().clamp(0, 1) * 255).round() / 255
    inner = stored[..., SHAVED : stored.shape[-2] - SHAVED, SHAVED : stored.shape[-1] - SHAVED]
    if inner.shape[1] == 1:
        return inner[:, 0]
    weights = torch.tensor(_LUMA, device=images.device)
    return (torch.einsum("bchw,c->bhw", inner, weights) + 16) / 255


def psnr(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Returns the peak signal-to-noise ratio of every image, (batch,) in dB: -10 log10(mean squared error) of `luma`.

    At most 100 dB, which images that are the same have.
    """
    squares = (luma(outputs) - luma(labels)).double() ** 2
    return -10 * squares.flatten(1).mean(dim=1).clamp_min(_EXACT).log10()


def ssim(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Returns the structural similarity of every image, (batch,) up to 1, of `luma`.

    Source: Wang et al., Image quality assessment: from error visibility to structural similarity (IEEE TIP 2004): a
    Gaussian window of 11 by 11 with a standard deviation of 1.5, places where it fits into the image alone.
    """
    x, y = luma(outputs), luma(labels)
    maps = torch.stack([x, y, x * x, y * y, x * y], dim=1)
    mean_x, mean_y, xx, yy, xy = _blurred(maps).unbind(dim=1)
    var_x, var_y, cov = xx - mean_x**2, yy - mean_y**2, xy - mean_x * mean_y
    likeness = (2 * mean_x * mean_y + _C1) * (2 * cov + _C2)
    return (
        (likeness / ((mean_x**2 + mean_y**2 + _C1) * (var_x + var_y + _C2))).flatten(1).mean(dim=1)
    )


def _blurred(maps: torch.Tensor) -> torch.Tensor:
    """Returns means of (batch, n, height, width) maps in SSIM's window, where it fits."""
    places = torch.arange(_WINDOW, device=maps.device, dtype=maps.dtype) - _WINDOW // 2
    line = torch.exp(-(places**2) / (2 * _SIGMA**2))
    line = line / line.sum()
    flat = maps.flatten(0, 1)[:, None]
    flat = F.conv2d(F.conv2d(flat, line.view(1, 1, -1, 1)), line.view(1, 1, 1, -1))
    return flat.view(*maps.shape[:2], *flat.shape[-2:])


def _check_images(outputs: torch.Tensor, labels: torch.Tensor) -> None:
    """Raises unless outputs are images of the size of the labels, and these large enough to be compared."""
    if labels.ndim != 4 or not labels.is_floating_point() or labels.shape[1] not in (1, 3):
        msg = "labels of super-resolution are the images that are wanted, (n, 1 or 3, height, width) float32 in [0, 1], "
        raise DataError(f"{msg}found {tuple(labels.shape)} {labels.dtype}")
    if min(labels.shape[-2:]) < SMALLEST:
        msg = f"images are compared from {SMALLEST} pixels of height and width on, found {tuple(labels.shape[-2:])}; "
        raise DataError(f"{msg}take larger patches")
    if outputs.shape != labels.shape:
        msg = f"the model must return {tuple(labels.shape)} for {plural(len(labels), 'image')}, found "
        msg += f"{tuple(outputs.shape)}: model and data have one scale"
        raise ModelError(msg)


SUPERRESOLUTION = Objective(
    loss=F.l1_loss,
    metrics={"psnr": psnr, "ssim": ssim},
    check=_check_images,
    divergence=of_images,
)
