"""Every published architecture, by family and name.

`cifar_model_dict` and `tiny_imagenet_model_dict` map a name to (constructor, path of published weights or None),
`imagenet_model_dict` maps it to a constructor. A constructor takes `num_classes`; `_base.Network` states what it
builds. State-dict keys are the published ones. To add an architecture, put it into its family's dictionary.
"""

from functools import partial
from typing import Any

import torch.nn as nn

from edkd.errors import UserError, nearest
from edkd.models.mobilenetv1 import MobileNetV1
from edkd.models.mobilenetv2 import MobileNetV2, TinyMobileNetV2
from edkd.models.resnet import resnet, resnet_imagenet, resnetv2
from edkd.models.shufflenet import ShuffleV1, ShuffleV2
from edkd.models.vgg import VGG
from edkd.models.wrn import WideResNet
from edkd.paths import DATA_ROOT

X4 = (32, 64, 128, 256)


def _weights(*parts: str) -> str:
    return str(DATA_ROOT.joinpath("download_ckpts", *parts))


def _cifar_weights(name: str) -> str:
    return _weights("cifar_teachers", f"{name}_vanilla", "ckpt_epoch_240.pth")


cifar_model_dict = {
    "resnet8": (partial(resnet, 8), None),
    "resnet14": (partial(resnet, 14), None),
    "resnet20": (partial(resnet, 20), None),
    "resnet32": (partial(resnet, 32), None),
    "resnet44": (partial(resnet, 44), None),
    "resnet56": (partial(resnet, 56), _cifar_weights("resnet56")),
    "resnet110": (partial(resnet, 110), _cifar_weights("resnet110")),
    "resnet8x4": (partial(resnet, 8, channels=X4), None),
    "resnet32x4": (partial(resnet, 32, channels=X4), _cifar_weights("resnet32x4")),
    "ResNet18": (partial(resnetv2, 18), None),
    "ResNet50": (partial(resnetv2, 50), _cifar_weights("ResNet50")),
    "wrn_16_1": (partial(WideResNet, 16, 1), None),
    "wrn_16_2": (partial(WideResNet, 16, 2), None),
    "wrn_40_1": (partial(WideResNet, 40, 1), None),
    "wrn_40_2": (partial(WideResNet, 40, 2), _cifar_weights("wrn_40_2")),
    "vgg8": (partial(VGG, 8), None),
    "vgg11": (partial(VGG, 11), None),
    "vgg13": (partial(VGG, 13), _cifar_weights("vgg13")),
    "vgg16": (partial(VGG, 16), None),
    "vgg19": (partial(VGG, 19), None),
    "MobileNetV2": (MobileNetV2, None),
    "ShuffleV1": (ShuffleV1, None),
    "ShuffleV2": (ShuffleV2, None),
}

tiny_imagenet_model_dict = {
    "ResNet18": (
        partial(resnetv2, 18, num_classes=200),
        _weights("tiny_imagenet_teachers", "ResNet18_vanilla", "ti_res18"),
    ),
    "MobileNetV2": (TinyMobileNetV2, None),
    "ShuffleV2": (partial(ShuffleV2, num_classes=200), None),
}

imagenet_model_dict = {
    "ResNet18": partial(resnet_imagenet, 18),
    "ResNet34": partial(resnet_imagenet, 34),
    "ResNet50": partial(resnet_imagenet, 50),
    "ResNet101": partial(resnet_imagenet, 101),
    "MobileNetV1": MobileNetV1,
}

_TORCHVISION_FILES = {
    "ResNet18": "resnet18-5c106cde.pth",
    "ResNet34": "resnet34-333f7ec4.pth",
    "ResNet50": "resnet50-19c8e357.pth",
    "ResNet101": "resnet101-5d3b4d8f.pth",
}

DOWNLOADS = {"cifar": "teachers", "imagenet": "imagenet_teachers"}
"""Family -> the name by which `tools/download.py` fetches its published weights; none for the others."""

_FAMILIES: dict[str, dict[str, Any]] = {
    "cifar": cifar_model_dict,
    "tiny_imagenet": tiny_imagenet_model_dict,
    "imagenet": imagenet_model_dict,
}


def model_names(family: str) -> list[str]:
    """Names known in `family`: "cifar", "tiny_imagenet" or "imagenet". Raises UserError for another family."""
    if family not in _FAMILIES:
        raise UserError(f"unknown model family '{family}'{nearest(family, _FAMILIES)} (known: {', '.join(_FAMILIES)})")
    return list(_FAMILIES[family])


def _find(family: str, name: str) -> Any:
    known = model_names(family)
    if name not in known:
        raise UserError(f"unknown {family} model '{name}'{nearest(name, known)} (known: {', '.join(known)})")
    return _FAMILIES[family][name]


def get_model(family: str, name: str, num_classes: int) -> nn.Module:
    """Build a network with fresh weights. Raises UserError, naming the nearest known, for an unknown family or name."""
    entry = _find(family, name)
    constructor = entry if family == "imagenet" else entry[0]
    return constructor(num_classes=num_classes)


def published_weights(family: str, name: str) -> str | None:
    """Path where the published weights belong (the file need not be there), or None where none were published.

    Raises UserError for an unknown family or name. A file holds `{"model": state_dict}`; torchvision's, for
    "imagenet", hold the state dict itself.
    """
    entry = _find(family, name)
    if family != "imagenet":
        return entry[1]
    file = _TORCHVISION_FILES.get(name)
    return file and _weights("imagenet_teachers", file)
