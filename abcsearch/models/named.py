"""The networks that have a name, without torch; see `abcsearch.models.registry`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from abcsearch.errors import ModelError
from abcsearch.registry import Home, Registry

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

_IN = "abcsearch.models"

# Name -> constructor. `MODELS["mine"] = MyNet` makes a model known by name; "package.module:callable" needs no entry.
# Those for CIFAR's 32x32 images say so where a network of that name for ImageNet is better known.
MODELS: Registry[Callable[..., nn.Module]] = Registry(
    "model",
    f"{__name__}:MODELS",
    {
        "small_resnet": Home(path=f"{_IN}.resnet:SmallResNet"),
        "small_fcn": Home(path=f"{_IN}.fcn:SmallFCN"),
        "small_edsr": Home(path=f"{_IN}.edsr:SmallEDSR"),
        "resnet20": Home(path=f"{_IN}.resnet:resnet20"),
        "resnet32": Home(path=f"{_IN}.resnet:resnet32"),
        "resnet44": Home(path=f"{_IN}.resnet:resnet44"),
        "resnet56": Home(path=f"{_IN}.resnet:resnet56"),
        "resnet110": Home(path=f"{_IN}.resnet:resnet110"),
        "vgg16_cifar": Home(path=f"{_IN}.vgg:VGG16"),
        "googlenet_cifar": Home(path=f"{_IN}.googlenet:GoogLeNet"),
        "densenet40": Home(path=f"{_IN}.densenet:DenseNet"),
        "mobilenet_v1": Home(path=f"{_IN}.mobile:MobileNetV1"),
        "mobilenet_v1_cifar": Home(path=f"{_IN}.mobile:mobilenet_v1_cifar"),
        "mobilenet_v2_cifar": Home(path=f"{_IN}.mobile:mobilenet_v2_cifar"),
        "shufflenet_v2_x0_5_cifar": Home(path=f"{_IN}.mobile:shufflenet_v2_x0_5_cifar"),
        "tiny_ssd": Home(path=f"{_IN}.ssd:TinySSD"),
    },
    error=ModelError,
)
