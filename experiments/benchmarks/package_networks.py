"""Networks of whole packages, as their users build them, small where their sizes are free; nothing is downloaded."""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from torch import nn

# By the first word of a network's name: what is imported, which is what is installed but for hyphens.
IMPORTED = {
    "ultralytics": "ultralytics",
    "smp": "segmentation_models_pytorch",
    "torchvision": "torchvision",
    "monai": "monai",
    "transformers": "transformers",
    "pytorchcv": "pytorchcv",
    "spandrel": "spandrel",
    "super_image": "super_image",
    "facenet": "facenet_pytorch",
}


@dataclass(frozen=True)
class Network:
    """How a network is built, and what it runs on.

    Attributes:
        build: returns it with random weights.
        shapes: of its inputs, batch first.
        double: whether it runs in double precision.
    """

    build: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...]
    double: bool = True


def _words(names: str) -> list[str]:
    """Returns names that are separated by spaces."""
    return names.split()


def _image(size: int, channels: int = 3) -> tuple[tuple[int, ...], ...]:
    return ((1, channels, size, size),)


def _volume(size: int, channels: int = 1, depth: int = 0) -> tuple[tuple[int, ...], ...]:
    return ((1, channels, depth or size, size, size),)


def _made(module: str, name: str, *args: Any, **options: Any) -> nn.Module:  # noqa: ANN401 - theirs
    return getattr(importlib.import_module(module), name)(*args, **options)


def _call(module: str, name: str, *args: Any, **options: Any) -> Callable[[], nn.Module]:  # noqa: ANN401 - theirs
    return functools.partial(_made, module, name, *args, **options)


def _ultralytics() -> Iterable[tuple[str, Network]]:
    """Yields generations and tasks of YOLO, and RT-DETR, from the package's own yaml files."""
    tasks = {
        "DetectionModel": "yolov3-tiny yolov5n yolov6n yolov8n yolov8s yolov8n-ghost yolov8n-p2 yolov8n-p6 yolov9t yolov9s "
        "yolov10n yolo11n yolo12n yolo26n",
        "SegmentationModel": "yolov8n-seg yolov9c-seg yolo11n-seg yolo26n-seg",
        "PoseModel": "yolov8n-pose yolo11n-pose yolo26n-pose",
        "OBBModel": "yolov8n-obb yolo11n-obb yolo26n-obb",
        "ClassificationModel": "yolov8n-cls yolov8n-cls-resnet50 yolo11n-cls yolo26n-cls",
        "RTDETRDetectionModel": "rtdetr-resnet50 rtdetr-l yolov8n-rtdetr",
    }
    for task, names in tasks.items():
        for name in _words(names):
            build = _call("ultralytics.nn.tasks", task, f"{name}.yaml", verbose=False)
            yield name, Network(build, _image(64 if task == "ClassificationModel" else 128))


def _smp() -> Iterable[tuple[str, Network]]:
    """Yields every decoder with one encoder, and one decoder with encoders of every kind."""
    package = "segmentation_models_pytorch"
    given = {"encoder_weights": None, "classes": 3}
    for name in _words(
        "Unet UnetPlusPlus MAnet Linknet FPN PSPNet DeepLabV3 DeepLabV3Plus PAN UPerNet Segformer"
    ):
        build = _call(package, name, encoder_name="resnet18", **given)
        yield f"{name}-resnet18", Network(build, _image(128 if name == "PAN" else 64))
    for name in _words(
        "resnext50_32x4d mobilenet_v2 efficientnet-b0 timm-efficientnet-b0 densenet121 vgg11_bn mit_b0 xception dpn68 "
        "se_resnet50 inceptionv4 inceptionresnetv2 mobileone_s0 timm-mobilenetv3_small_100 timm-resnest14d "
        "timm-regnetx_002 timm-res2net50_26w_4s timm-skresnet18 tu-convnext_atto tu-hrnet_w18_small tu-dla34"
    ):
        yield (
            f"Unet-{name}",
            Network(_call(package, "Unet", encoder_name=name, **given), _image(64)),
        )
    swin = _call(package, "Unet", encoder_name="tu-swin_tiny_patch4_window7_224", **given)
    yield "Unet-swin", Network(swin, _image(224))
    heads = {"decoder_attention_type": "scse", "aux_params": {"classes": 4}}
    both = _call(package, "Unet", encoder_name="resnet18", **given, **heads)
    yield "Unet-scse-classes", Network(both, _image(64))
    yield (
        "DPT-vit",
        Network(
            _call(package, "DPT", encoder_name="tu-vit_tiny_patch16_224", **given), _image(224)
        ),
    )


def _torchvision() -> Iterable[tuple[str, Network]]:
    """Yields networks of video and optical flow; detectors, whose boxes are few on random images, are tested by others."""
    for name in ("r3d_18", "mc3_18", "r2plus1d_18"):
        yield (
            name,
            Network(_call("torchvision.models.video", name, weights=None), _volume(32, 3, 8)),
        )
    for name, size, depth in (("s3d", 224, 16), ("mvit_v1_b", 224, 16), ("swin3d_t", 64, 8)):
        build = _call("torchvision.models.video", name, weights=None)
        yield name, Network(build, _volume(size, 3, depth))
    for name in ("raft_small", "raft_large"):
        build = _call("torchvision.models.optical_flow", name, weights=None)
        yield name, Network(build, _image(128) * 2, double=False)


def _monai() -> Iterable[tuple[str, Network]]:
    """Yields medical networks of two and three dimensions."""
    yield from _monai_segments()
    yield from _monai_others()


def _medical(name: str, *args: Any, **options: Any) -> Callable[[], nn.Module]:  # noqa: ANN401 - theirs
    return _call("monai.networks.nets", name, *args, **options)


def _monai_segments() -> Iterable[tuple[str, Network]]:
    net, flat, cube, small = _medical, _image(64, 1), _volume(32), _image(32, 1)
    yield "UNet", Network(net("UNet", 2, 1, 2, (8, 16, 32, 64), (2, 2, 2), num_res_units=2), flat)
    volumes = net("UNet", 3, 1, 2, (8, 16, 32), (2, 2), num_res_units=2, norm="BATCH")
    yield "UNet-3d", Network(volumes, cube)
    yield "BasicUNet", Network(net("BasicUNet", 2, 1, 2), flat)
    yield "BasicUNet-3d", Network(net("BasicUNet", 3, 1, 2, (8, 8, 16, 32, 64, 8)), cube)
    yield "BasicUNetPlusPlus", Network(net("BasicUNetPlusPlus", 2, 1, 2), flat)
    yield "AttentionUnet", Network(net("AttentionUnet", 2, 1, 2, (8, 16, 32), (2, 2)), flat)
    yield "DynUNet-3d", Network(net("DynUNet", 3, 1, 2, [3, 3, 3], [1, 2, 2], [2, 2]), cube)
    deep = {"deep_supervision": True, "res_block": True}
    supervised = net("DynUNet", 2, 1, 2, [3, 3, 3, 3], [1, 2, 2, 2], [2, 2, 2], **deep)
    yield "DynUNet-deep", Network(supervised, flat)
    yield "SegResNet-3d", Network(net("SegResNet", 3, 8, 1, 2), cube)
    yield "SegResNetDS", Network(net("SegResNetDS", 2, 8, 1, 2), flat)
    coded = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2}
    yield "SegResNetVAE", Network(net("SegResNetVAE", (32, 32), **coded), small)
    yield "VNet-3d", Network(net("VNet", 3, 1, 2), cube)


def _monai_others() -> Iterable[tuple[str, Network]]:
    net, flat, cube, small = _medical, _image(64, 1), _volume(32), _image(32, 1)
    attention = {"feature_size": 8, "hidden_size": 96, "mlp_dim": 192, "num_heads": 4}
    yield "DenseNet121", Network(net("DenseNet121", 2, 1, 3), flat)
    yield "DenseNet121-3d", Network(net("DenseNet121", 3, 1, 3), cube)
    residual = {"spatial_dims": 3, "n_input_channels": 1, "num_classes": 3}
    yield "resnet18-3d", Network(net("resnet18", **residual), cube)
    squeezed = {"spatial_dims": 2, "in_channels": 3, "num_classes": 3}
    for name in ("SEResNet50", "SENet154"):
        yield name, Network(net(name, **squeezed), _image(64))
    gray = {"pretrained": False, "in_channels": 1, "num_classes": 3}
    yield "EfficientNetBN", Network(net("EfficientNetBN", "efficientnet-b0", **gray), flat)
    yield "FlexibleUNet", Network(net("FlexibleUNet", 3, 2, "efficientnet-b0"), _image(64))
    yield "HighResNet-3d", Network(net("HighResNet", 3, 1, 2), _volume(16))
    yield "UNETR", Network(net("UNETR", 1, 2, (32, 32), spatial_dims=2, **attention), small)
    yield "SwinUNETR", Network(net("SwinUNETR", 1, 2, feature_size=12, spatial_dims=2), flat)
    patches = net("ViT", 1, (32, 32), (8, 8), 96, 192, 3, 4, spatial_dims=2, classification=True)
    yield "ViT", Network(patches, small)
    yield "AutoEncoder", Network(net("AutoEncoder", 2, 1, 1, (8, 16, 32), (2, 2, 2)), small)
    variational = net("VarAutoEncoder", 2, (1, 32, 32), 1, 8, (8, 16), (2, 2))
    yield "VarAutoEncoder", Network(variational, small)
    yield "Regressor", Network(net("Regressor", (1, 32, 32), (2,), (8, 16), (2, 2)), small)
    yield "Classifier", Network(net("Classifier", (1, 32, 32), 5, (8, 16), (2, 2)), small)
    yield "Discriminator", Network(net("Discriminator", (1, 32, 32), (8, 16), (2, 2)), small)
    several = net("MILModel", 3, pretrained=False, backbone="resnet18")
    yield "MILModel", Network(several, ((1, 2, 3, 64, 64),))
    plain = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2}
    yield "MedNeXtS", Network(net("MedNeXtS", **plain), flat)
    yield "RegUNet", Network(net("RegUNet", 2, 1, 8, 2), flat)
    yield "LocalNet", Network(net("LocalNet", 2, 1, 8, (0, 1)), flat)
    counted = {"num_classes": 3, "num_channels": 1, "num_filters": 8}
    yield "Quicknat", Network(net("Quicknat", **counted), flat)
    yield "AHNet", Network(net("AHNet", **plain, upsample_mode="bilinear"), _image(128, 1))


def _configured(name: str, config: str, **options: Any) -> nn.Module:  # noqa: ANN401 - theirs
    package = importlib.import_module("transformers")
    return getattr(package, name)(getattr(package, config)(**options))


def _detr() -> nn.Module:
    import transformers  # pyright: ignore[reportMissingImports]

    backbone = transformers.ResNetConfig(out_features=["stage4"])
    plain = {"use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None}
    sizes = {"num_queries": 10, "encoder_layers": 1, "decoder_layers": 1, "d_model": 64}
    return _configured(
        "DetrForObjectDetection", "DetrConfig", backbone_config=backbone, **plain, **sizes
    )


def _transformers() -> Iterable[tuple[str, Network]]:
    """Yields convolutional networks at their own size, and transformers for images with a few narrow layers.

    Without SuperPoint, which picks points by comparing numbers that are equal but for rounding on random weights.
    """

    def net(name: str, kind: str, **options: Any) -> Callable[[], nn.Module]:  # noqa: ANN401 - theirs
        return functools.partial(_configured, f"{name}{kind}", f"{name}Config", **options)

    classes, narrow = "ForImageClassification", {"hidden_size": 96, "num_attention_heads": 4}
    for name in _words(
        "ResNet RegNet ConvNext ConvNextV2 MobileNetV1 MobileNetV2 EfficientNet Bit PoolFormer FocalNet MobileViT "
        "MobileViTV2 Segformer PvtV2 SwiftFormer Cvt HGNetV2 TextNet"
    ):
        yield name, Network(net(name, classes), _image(64))
    yield "Levit", Network(net("Levit", classes), _image(224))
    for name in ("ViT", "DeiT"):
        sizes = {"num_hidden_layers": 3, "image_size": 64, "intermediate_size": 192, **narrow}
        yield name, Network(net(name, classes, **sizes), _image(64))
    windows = {"image_size": 64, "window_size": 4, "embed_dim": 32}
    swin = net("Swin", classes, depths=[1, 1, 2], num_heads=[2, 4, 8], **windows)
    yield "Swin", Network(swin, _image(64))
    patches = {"num_hidden_layers": 3, "image_size": 56, "patch_size": 14, **narrow}
    yield "Dinov2", Network(net("Dinov2", classes, **patches), _image(56))
    for name in ("Segformer", "MobileViT", "MobileNetV2", "UperNet"):
        yield f"{name}-segments", Network(net(name, "ForSemanticSegmentation"), _image(64))
    larger = {"embed_dim": 32, "depths": [1, 1], "num_heads": [2, 2], "image_size": 32}
    yield "Swin2SR", Network(net("Swin2SR", "ForImageSuperResolution", **larger), _image(32))
    tokens = {"num_hidden_layers": 2, "image_size": [64, 64], "num_detection_tokens": 10}
    boxes = net("Yolos", "ForObjectDetection", intermediate_size=192, **tokens, **narrow)
    yield "Yolos", Network(boxes, _image(64))
    yield "RTDetr", Network(net("RTDetr", "ForObjectDetection", num_queries=20), _image(128))
    yield "Detr", Network(_detr, _image(64))
    yield (
        "ResNetBackbone",
        Network(net("ResNet", "Backbone", out_features=["stage2", "stage4"]), _image(64)),
    )
    depth = {"num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3], "image_size": 64}
    dense = net("DPT", "ForDepthEstimation", intermediate_size=192, **depth, **narrow)
    yield "DPT", Network(dense, _image(64))
    yield "GLPN", Network(net("GLPN", "ForDepthEstimation"), _image(64))
    yield "DepthAnything", Network(net("DepthAnything", "ForDepthEstimation"), _image(70))


def _pytorchcv() -> Iterable[tuple[str, Network]]:
    """Yields one network of nearly every family of the package, small ones."""
    by_size = {
        32: "resnet20_cifar10 preresnet20_cifar10 resnext29_32x4d_cifar10 seresnet20_cifar10 sepreresnet20_cifar10 "
        "pyramidnet110_a48_cifar10 densenet40_k12_cifar10 xdensenet40_2_k24_bc_cifar10 wrn16_10_cifar10 ror3_56_cifar10 "
        "rir_cifar10 shakeshakeresnet20_2x16d_cifar10 shakedropresnet20_cifar10 diaresnet20_cifar10 diapreresnet20_cifar10 "
        "nin_cifar10 fractalnet_cifar10 wrn20_10_1bit_cifar10",
        64: "resnetd50b resneta10 resnesta18 regnetx002 regnety002 efficientnet_b0 efficientnet_b0b "
        "efficientnet_edge_small_b isqrtcovresnet18 dicenet_w1 lwopenpose2d_mobilenet_cmupan_coco",
        224: "bam_resnet18 cbam_resnet18 "
        "vgg11 bn_vgg11 bninception resnet10 preresnet10 resnext14_16x4d seresnet10 sepreresnet10 "
        "seresnext50_32x4d senet16 ibn_resnet50 ibnb_resnet50 airnet50_1x64d_r2 airnext50_32x4d_r2 scnet50 "
        "dla46c hrnet_w18_small_v1 vovnet27s selecsls42 hardnet39ds densenet121 peleenet squeezenet_v1_0 "
        "squeezeresnet_v1_1 sqnxt23_w1 mobilenet_w1 fdmobilenet_w1 mobilenetv2_w1 mobilenetv3_large_w1 "
        "igcv3_w1 mnasnet_b1 darknet_ref darknet19 darknet53 shufflenet_g1_w1 shufflenet_g3_w1 "
        "shufflenetv2_w1 shufflenetv2b_w1 menet108_8x1_g3 menet228_12x1_g3 ghostnet proxylessnas_cpu fbnet_cb "
        "mixnet_s spnasnet dpn68 octresnet10_ad2 resnetbc26b sharesnet18 alexnet zfnet nasnet_4a1056 "
        "diracnet18v2 condensenet74_c4_g4",
        299: "inceptionv3 inceptionv4 inceptionresnetv1 xception",
        331: "pnasnet5large polynet",
        256: "alphapose_fastseresnet101b_coco simplepose_resnet18_coco simplepose_mobile_resnet18_coco "
        "centernet_resnet18_voc ibppose_coco",
    }
    for size, names in by_size.items():
        for name in _words(names):
            build = _call("pytorchcv.model_provider", "get_model", name, pretrained=False)
            yield name, Network(build, _image(size))
    for name in _words(
        "icnet_resnetd50b_cityscapes fastscnn_cityscapes cgnet_cityscapes dabnet_cityscapes sinet_cityscapes "
        "lednet_cityscapes enet_cityscapes "
        "linknet_cityscapes segnet_cityscapes unet_cityscapes erfnet_cityscapes "
        "esnet_cityscapes edanet_cityscapes fpenet_cityscapes pspnet_resnetd50b_voc deeplabv3_resnetd50b_voc "
        "fcn8sd_resnetd50b_voc danet_resnetd50b_cityscapes bisenet_resnet18_celebamaskhq"
    ):
        sized = {"pretrained": False, "in_size": (256, 256)}
        yield (
            name,
            Network(_call("pytorchcv.model_provider", "get_model", name, **sized), _image(256)),
        )


def _spandrel() -> Iterable[tuple[str, Network]]:
    """Yields networks that restore or enlarge images, with few and narrow layers where their sizes are free."""
    blocks = {"dim": 16, "n_blocks": 2, "upscaling_factor": 2}
    windows = {"img_size": 32, "embed_dim": 24, "num_heads": [2], "upscale": 2}
    named = {"upsampler": "pixelshuffle", "window_size": 8}
    sizes: dict[str, tuple[str, dict[str, Any], int]] = {
        "RRDBNet": ("ESRGAN.__arch.RRDB", {"num_filters": 16, "num_blocks": 2, "scale": 2}, 32),
        "SPAN": (
            "SPAN.__arch.span",
            {"num_in_ch": 3, "num_out_ch": 3, "feature_channels": 24},
            32,
        ),
        "SRVGGNetCompact": (
            "Compact.__arch.SRVGG",
            {"num_feat": 16, "num_conv": 4, "upscale": 2},
            32,
        ),
        "SAFMN": ("SAFMN.__arch.safmn", {**blocks, "dim": 24}, 32),
        "NAFNet": (
            "NAFNet.__arch.NAFNet_arch",
            {"width": 8, "enc_blk_nums": [1, 1], "dec_blk_nums": [1, 1]},
            32,
        ),
        "SwinIR": ("SwinIR.__arch.SwinIR", {**windows, **named, "depths": [2]}, 32),
        "UpCunet2x": ("RealCUGAN.__arch.upcunet_v3", {}, 64),
        "OmniSR": (
            "OmniSR.__arch.OmniSR",
            {"num_feat": 16, "res_num": 1, "up_scale": 2, "window_size": 8},
            32,
        ),
        "PLKSR": ("PLKSR.__arch.PLKSR", blocks, 32),
        "RealPLKSR": ("PLKSR.__arch.RealPLKSR", blocks, 32),
        "HAT": (
            "HAT.__arch.HAT",
            {**windows, **named, "depths": (2,), "num_heads": (2,), "squeeze_factor": 4},
            32,
        ),
        "DAT": (
            "DAT.__arch.DAT",
            {**windows, "embed_dim": 48, "depth": [2], "split_size": [4, 4]},
            32,
        ),
        "MoSR": ("MoSR.__arch.mosr_arch", {}, 32),
        "CRAFT": ("CRAFT.__arch.CRAFT", {}, 32),
    }
    for name, (module, options, size) in sizes.items():
        build = _call(f"spandrel.architectures.{module}", name, **options)
        yield name, Network(build, _image(size))


def _enlarging(name: str) -> nn.Module:
    package = importlib.import_module("super_image")
    return getattr(package, f"{name}Model")(getattr(package, f"{name}Config")(scale=2))


def _super_image() -> Iterable[tuple[str, Network]]:
    """Yields the package's networks for twice the size."""
    for name in _words("Edsr Msrn A2n Pan Carn Awsrn Mdsr Han Rcan Drln"):
        yield name, Network(functools.partial(_enlarging, name), _image(24))


def _facenet() -> Iterable[tuple[str, Network]]:
    """Yields what finds faces and what tells them apart."""
    faces = _call("facenet_pytorch", "InceptionResnetV1", classify=True, num_classes=10)
    yield "InceptionResnetV1", Network(faces, _image(96))
    for name, size in (("PNet", 24), ("RNet", 24), ("ONet", 48)):
        build = _call("facenet_pytorch.models.mtcnn", name, pretrained=False)
        yield name, Network(build, _image(size))


_PACKAGES: Mapping[str, Callable[[], Iterable[tuple[str, Network]]]] = {
    "ultralytics": _ultralytics,
    "smp": _smp,
    "torchvision": _torchvision,
    "monai": _monai,
    "transformers": _transformers,
    "pytorchcv": _pytorchcv,
    "spandrel": _spandrel,
    "super_image": _super_image,
    "facenet": _facenet,
}
NETWORKS: dict[str, Network] = {
    f"{package}/{name}": network
    for package, networks in _PACKAGES.items()
    for name, network in networks()
}
