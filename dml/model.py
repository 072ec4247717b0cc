"""Images to unit embeddings, in three steps that mixing can enter: image -> feature maps -> pooled
-> embedding.

Read in the chapters "mixup variants" and "training and evaluation" (book/06_training).
"""

from __future__ import annotations

import itertools

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dml.mixup import Mix, interpolate
from dml.weights import LITE0, lite0

# Where Metrix mixes: the images (the whole network runs on the mixed ones), the last feature maps
# (pooling and the embedding layer run again), or the embeddings (nothing runs again).
SPACES = ("input", "feature", "embed")


class SmallCNN(nn.Sequential):
    """A small network for images of about 32 x 32 pixels, trained from scratch in minutes without a
    GPU.

    Five 3 x 3 convolutions with batch norm, a factor 8 of pooling: (B, C, 32, 32) -> (B, 256, 4,
    4).
    """

    num_features = 256

    def __init__(self, in_chans: int):
        widths = (in_chans, 32, 64, 128, 128, 256)
        pool_after = (0, 1, 3)  # 32 -> 16 -> 8 -> 4 pixels
        layers: list[nn.Module] = []
        for n, (before, after) in enumerate(itertools.pairwise(widths)):
            layers += [
                nn.Conv2d(before, after, 3, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(),
            ]
            if n in pool_after:
                layers.append(nn.MaxPool2d(2))
        super().__init__(*layers)


class EmbeddingModel(nn.Module):
    """Backbone, average plus max pooling, a linear layer and unit length, as Metrix's code has it.

    Args:
        backbone: "small" (`SmallCNN`) or any timm model with feature maps, such as
            "resnet50.tv_in1k".
        embedding_size: D.
        in_chans: channels of the images.
        weights: "none" for random weights, "pretrained" for timm's (those of tf_efficientnet_lite0
            come with the installation, `dml.weights`), or the path of a state dict for the
            backbone.
        mean, std: the images' normalisation in [0, 1], numbers or one per channel; timm's own where
            it has one.

    Raises:
        ValueError: an unknown backbone. RuntimeError: weights that cannot be had; the message says
            which, from where and how to give them by hand. Never does it fall back to random
            weights.
    """

    def __init__(
        self,
        backbone: str = "small",
        embedding_size: int = 128,
        in_chans: int = 3,
        weights: str = "none",
        mean: float | tuple[float, ...] = 0.5,
        std: float | tuple[float, ...] = 0.5,
    ):
        super().__init__()
        self.backbone = _backbone(backbone, in_chans, weights)
        config = getattr(self.backbone, "pretrained_cfg", {}) if weights == "pretrained" else {}
        for name, value in (("mean", mean), ("std", std)):
            value = torch.as_tensor(config.get(name, value), dtype=torch.float32).reshape(1, -1)
            if in_chans == 1:  # grey images are every colour at once
                value = value.mean(1)
            self.register_buffer(name, value.reshape(1, -1, 1, 1))
        self.embedding = nn.Linear(self.backbone.num_features, embedding_size)
        nn.init.kaiming_normal_(self.embedding.weight, mode="fan_out")
        nn.init.zeros_(self.embedding.bias)

    def prepare(self, images: Tensor) -> Tensor:
        """uint8 images to normalised floats, on the device: a byte travels cheaper than a float,
        (B, C, H, W)."""
        return (images.to(self.mean.dtype) / 255 - self.mean) / self.std

    def features(self, inputs: Tensor) -> Tensor:
        """Prepared images to the last feature maps, (B, C, H, W) -> (B, F, h, w); of a transformer,
        the last block's tokens, (B, F, tokens, 1)."""
        maps = getattr(self.backbone, "forward_features", self.backbone)(inputs)
        if maps.ndim == 3:
            maps = maps.unsqueeze(2)  # (B, tokens, 1, F)
        return maps if maps.shape[1] == self.backbone.num_features else maps.movedim(3, 1)

    def pool(self, maps: Tensor) -> Tensor:
        """Average plus max over positions, (B, F, h, w) -> (B, F)."""
        return maps.mean((2, 3)) + maps.amax((2, 3))

    def head(self, pooled: Tensor) -> Tensor:
        """Pooled features to unit embeddings, (B, F) -> (B, D)."""
        return F.normalize(self.embedding(pooled), dim=1)

    def forward(self, images: Tensor) -> Tensor:
        """uint8 images to unit embeddings, (B, C, H, W) -> (B, D)."""
        return self.head(self.pool(self.features(self.prepare(images))))

    def mixer(self, space: str, inputs: Tensor, maps: Tensor) -> Mix | None:
        """What `Metrix` calls to mix and embed pairs of this batch in a space of `SPACES`
        (eq-spaces); None for "embed", which mixes similarities (eq-gram).

        Args:
            space: one of `SPACES`.
            inputs: the prepared images, (B, C, H, W).
            maps: their feature maps, kept from the one pass through the backbone, (B, F, h, w).
        """
        if space == "embed":
            return None
        if space == "feature":
            return lambda i, j, lam: self.head(pool_mixed(maps, i, j, lam))
        if space == "input":
            return lambda i, j, lam: self.head(
                self.pool(self.features(interpolate(inputs, i, j, lam)))
            )
        raise ValueError(f"space={space!r} is not one of {', '.join(SPACES)}")


def pool_mixed(maps: Tensor, i: Tensor, j: Tensor, lam: float | Tensor) -> Tensor:
    """Average plus max pooling of U mixed feature maps, (B, F, h, w) -> (U, F), without keeping the
    mixed maps.

    The average of a mixture is the mixture of averages; only the maximum has to see the mixed maps,
    and does so in blocks.
    """
    return interpolate(maps.mean((2, 3)), i, j, lam) + MixedMax.apply(maps, i, j, lam)


class MixedMax(torch.autograd.Function):
    """max over positions of lam maps_i + (1 - lam) maps_j, (U, F).

    Forward goes through U in blocks; of each mixed map only the position of its maximum is kept,
    which is where its gradient goes, lam of it to i and 1 - lam to j.
    """

    BLOCK = 1 << 20  # numbers of mixed maps held at a time: 4 MiB of float32

    @staticmethod
    def forward(ctx, maps: Tensor, i: Tensor, j: Tensor, lam: float | Tensor) -> Tensor:
        flat = maps.flatten(2)  # (B, F, P)
        rows = max(1, MixedMax.BLOCK // flat[0].numel())
        values, places = [], []
        for start in range(0, len(i), rows):
            block = slice(start, start + rows)
            part = lam[block] if isinstance(lam, Tensor) else lam
            value, place = interpolate(flat, i[block], j[block], part).max(2)
            values.append(value)
            places.append(place)
        ctx.save_for_backward(torch.cat(places), i, j)
        ctx.lam, ctx.shape = lam, maps.shape
        return torch.cat(values)

    @staticmethod
    def backward(ctx, grad: Tensor):
        place, i, j = ctx.saved_tensors  # (U, F), (U,), (U,)
        batch, features, *positions = ctx.shape
        lam = ctx.lam
        if isinstance(lam, Tensor):
            lam = lam.to(grad.dtype)[:, None]
        size = positions[0] * positions[1]
        channel = torch.arange(features, device=grad.device) * size
        out = grad.new_zeros(batch * features * size)
        for parent, share in ((i, lam), (j, 1 - lam)):
            index = parent[:, None] * (features * size) + channel + place
            out.index_add_(0, index.flatten(), (grad * share).flatten())
        return out.view(ctx.shape), None, None, None


def freeze_batch_norm(network: nn.Module) -> None:
    """Put every batch norm in evaluation mode: it keeps its statistics until `network.train()`."""
    for layer in network.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.eval()


def _backbone(name: str, in_chans: int, weights: str) -> nn.Module:
    if name == "small":
        if weights == "pretrained":
            raise RuntimeError(
                "the small network has no pretrained weights: give weights='none' or a path"
            )
        backbone = SmallCNN(in_chans)
    else:
        if not timm.is_model(name):
            near = ", ".join(timm.list_models(f"*{name.split('.')[0]}*")[:8])
            raise ValueError(
                f"backbone={name!r} is neither 'small' nor a model of timm. Near: {near or 'none'}"
            )
        options = {"in_chans": in_chans, "num_classes": 0, "global_pool": ""}
        if name == LITE0 and weights == "pretrained":
            options["pretrained_cfg_overlay"] = {"state_dict": lite0()}
        try:
            backbone = timm.create_model(name, pretrained=weights == "pretrained", **options)
        except Exception as error:  # what timm, its hub or the network raise has no common type
            if weights != "pretrained":
                raise
            raise RuntimeError(_by_hand(name, error)) from error
    if weights not in ("none", "pretrained"):
        state = torch.load(weights, map_location="cpu", weights_only=True)
        own = backbone.state_dict()
        wrong = [key for key in own if key not in state or state[key].shape != own[key].shape]
        if wrong:
            raise RuntimeError(
                f"{weights} is not a state dict of {name}: {wrong[0]} and {len(wrong) - 1} more "
                "are missing or of another shape"
            )
        backbone.load_state_dict({key: state[key] for key in own})  # without a classifier's
    return backbone


def _by_hand(name: str, error: Exception) -> str:
    """Which weights were wanted, from where, and how to give them."""
    config = timm.get_pretrained_cfg(name)
    source = config and ((config.hf_hub_id and f"hub {config.hf_hub_id}") or config.url)
    return (
        f"the pretrained weights of {name} cannot be had ({type(error).__name__}: {error}). "
        f"They come from {source or 'nowhere: timm has none for it'}; fetch the state dict there "
        "and give its path as weights=PATH"
    )
