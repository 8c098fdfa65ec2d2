"""The networks that abcsearch is checked on, by family; names of timm's begin with "timm/"."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torchvision

if TYPE_CHECKING:
    from torch import nn


def _timm(names: str) -> list[str]:
    """Returns names of timm's networks, separated by spaces, with the prefix that `build` knows."""
    return [f"timm/{name}" for name in names.split()]


FAMILIES: dict[str, list[str]] = {
    "AlexNet, VGG": [
        *(
            "alexnet",
            "vgg11",
            "vgg11_bn",
            "vgg13",
            "vgg13_bn",
            "vgg16",
            "vgg16_bn",
            "vgg19",
            "vgg19_bn",
        ),
    ],
    "ResNet": [
        *(
            "resnet18",
            "resnet34",
            "resnet50",
            "resnet101",
            "resnet152",
            "wide_resnet50_2",
            "wide_resnet101_2",
        ),
        *_timm("resnet18 resnet26d resnet50d resnetv2_50 resnetblur50 wide_resnet50_2 tresnet_m"),
    ],
    "ResNeXt": [
        *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
        *_timm("resnext50_32x4d resnext26ts"),
    ],
    "SE-ResNet": _timm("seresnet50 seresnext26d_32x4d legacy_seresnet18 legacy_seresnext26_32x4d"),
    "ECA-ResNet": _timm("ecaresnet26t ecaresnet50d"),
    "SK-ResNet": _timm("skresnet18 skresnet50 skresnext50_32x4d"),
    "ResNeSt": _timm("resnest14d resnest50d"),
    "Res2Net": _timm("res2net50_26w_4s res2net50d res2next50"),
    "RegNet": [
        *(
            "regnet_x_400mf",
            "regnet_x_800mf",
            "regnet_x_1_6gf",
            "regnet_x_3_2gf",
            "regnet_x_8gf",
            "regnet_x_16gf",
        ),
        *(
            "regnet_x_32gf",
            "regnet_y_400mf",
            "regnet_y_800mf",
            "regnet_y_1_6gf",
            "regnet_y_3_2gf",
            "regnet_y_8gf",
        ),
        *("regnet_y_16gf", "regnet_y_32gf", "regnet_y_128gf"),
        *_timm("regnetx_004 regnety_004 regnetz_b16 gernet_s"),
    ],
    "DenseNet": [
        *("densenet121", "densenet161", "densenet169", "densenet201"),
        *_timm("densenet121"),
    ],
    "DPN": _timm("dpn48b dpn68"),
    "DLA": _timm("dla34 dla46x_c dla60_res2net"),
    "HRNet": _timm("hrnet_w18_small hrnet_w18"),
    "VoVNet": _timm("ese_vovnet19b_dw vovnet39a"),
    "Inception": [
        *("googlenet", "inception_v3"),
        *_timm("inception_v3 inception_v4 inception_resnet_v2"),
    ],
    "Xception": _timm("xception41 xception65 legacy_xception"),
    "SqueezeNet": ["squeezenet1_0", "squeezenet1_1"],
    "ShuffleNetV2": [
        "shufflenet_v2_x0_5",
        "shufflenet_v2_x1_0",
        "shufflenet_v2_x1_5",
        "shufflenet_v2_x2_0",
    ],
    "MobileNetV2": ["mobilenet_v2", *_timm("mobilenetv2_100 mobilenetv2_050")],
    "MobileNetV3": [
        *("mobilenet_v3_large", "mobilenet_v3_small"),
        *_timm("mobilenetv3_large_100 mobilenetv3_small_050"),
    ],
    "MobileNetV4": _timm(
        "mobilenetv4_conv_small mobilenetv4_conv_medium mobilenetv4_hybrid_medium"
    ),
    "MNASNet": [
        *("mnasnet0_5", "mnasnet0_75", "mnasnet1_0", "mnasnet1_3"),
        *_timm("mnasnet_100 semnasnet_075 spnasnet_100 fbnetc_100 hardcorenas_a"),
    ],
    "EfficientNet": [
        *(
            "efficientnet_b0",
            "efficientnet_b1",
            "efficientnet_b2",
            "efficientnet_b3",
            "efficientnet_b4",
        ),
        *("efficientnet_b5", "efficientnet_b6", "efficientnet_b7"),
        *("efficientnet_v2_s", "efficientnet_v2_m", "efficientnet_v2_l"),
        *_timm("efficientnet_b0 efficientnetv2_rw_t efficientnet_lite0 tinynet_e"),
    ],
    "MixNet, ReXNet": _timm("mixnet_s rexnet_100"),
    "GhostNet": _timm("ghostnet_100 ghostnetv2_100 repghostnet_050"),
    "LCNet": _timm("lcnet_050 lcnet_100"),
    "RepVGG": _timm("repvgg_a0 repvgg_b0 repvit_m0_9"),
    "MobileOne": _timm("mobileone_s0 mobileone_s1"),
    "HGNet": _timm("hgnet_tiny hgnetv2_b0"),
    "StarNet, FasterNet": _timm("starnet_s1 fasternet_t0"),
    "CSPNet, DarkNet": _timm("cspresnet50 cspdarknet53 darknet53 selecsls42"),
    "NFNet": _timm("nfnet_l0 eca_nfnet_l0 nf_resnet50 nf_regnet_b0"),
    "ConvNeXt": [
        *("convnext_tiny", "convnext_small", "convnext_base", "convnext_large"),
        *_timm(
            "convnext_atto convnextv2_atto inception_next_tiny convmixer_768_32 poolformer_s12 edgenext_xx_small"
        ),
    ],
    "ViT": ["vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32", "vit_h_14"],
    "Swin": ["swin_t", "swin_s", "swin_b", "swin_v2_t", "swin_v2_s", "swin_v2_b"],
    "MaxViT": ["maxvit_t"],
    "FCN, DeepLabV3, LR-ASPP": [
        *("fcn_resnet50", "fcn_resnet101", "deeplabv3_resnet50", "deeplabv3_resnet101"),
        *("deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large"),
    ],
}


def build(name: str, **options: Any) -> nn.Module:  # noqa: ANN401 - the constructors' own
    """Returns a network with random weights, in evaluation mode; nothing is downloaded.

    Args:
        name: as in FAMILIES.
        options: for its constructor.
    """
    if name.startswith("timm/"):
        import timm

        return timm.create_model(name.removeprefix("timm/"), pretrained=False, **options).eval()
    if name in ("googlenet", "inception_v3"):
        options = {"init_weights": False, **options}
    if name in FAMILIES["FCN, DeepLabV3, LR-ASPP"]:
        options = {"weights_backbone": None, **options}
    return torchvision.models.get_model(name, weights=None, **options).eval()


def usual_size(name: str) -> int:
    """Returns height and width of the images that the network was made for."""
    if name.startswith("timm/"):
        import timm

        config: Any = timm.get_pretrained_cfg(name.removeprefix("timm/"))
        return config.input_size[1]
    weights: Any = torchvision.models.get_model_weights(name)
    transforms = [entry.transforms() for entry in weights]
    sizes = [(getattr(each, "crop_size", None) or each.resize_size)[0] for each in transforms]
    return min(sizes)  # some weights were fine-tuned on larger images
