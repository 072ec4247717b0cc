"""What is done to images between a split and the network, in 8 bits.

Normalisation is not: the model does it on its own device, so that only bytes travel.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2


def random_crop(size: int = 224) -> v2.Transform:
    """The papers' augmentation: a random crop of 8 to 100 % of the area, and a random flip."""
    return v2.Compose([v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip()])


def centre_crop(size: int = 224) -> v2.Transform:
    """The papers' test images: shorter side to 8/7 of `size` (256 for 224), the centre of it."""
    return v2.Compose([v2.Resize(size * 8 // 7, antialias=True), v2.CenterCrop(size)])


class RandomAffine:
    """A small random affine map of each image of a batch, each its own, as one matrix expression.

    For small images in memory, where a transform of one image after the other would cost more
    than the network. What moves in from outside is black.

    Args:
        degrees: rotation, at most, to either side.
        scale: width and height are scaled by up to e^scale either way, each by itself.
        shift: in parts of the side, at most.
    """

    batched = True

    def __init__(self, degrees: float = 10.0, scale: float = 0.1, shift: float = 0.1):
        # affine_grid counts from -1 to 1, so a side is 2
        self.limits = torch.tensor([degrees * torch.pi / 180, scale, scale, 2 * shift, 2 * shift])

    def __call__(self, images: Tensor) -> Tensor:
        """Map a batch (B, C, H, W) uint8, drawing from torch's global generator."""
        draws = (2 * torch.rand(len(images), 5) - 1) * self.limits
        angle, width, height, right, down = draws.T  # (B,) each
        x = torch.stack([angle.cos() * width.exp(), -angle.sin() * width.exp(), right], 1)
        y = torch.stack([angle.sin() * height.exp(), angle.cos() * height.exp(), down], 1)
        grid = F.affine_grid(torch.stack([x, y], 1), list(images.shape), align_corners=False)
        mapped = F.grid_sample(images.float(), grid, align_corners=False)
        return mapped.round_().to(torch.uint8)


class RandomFlip:
    """Each image of a batch, or not, left for right."""

    batched = True

    def __call__(self, images: Tensor) -> Tensor:
        """Flip a batch (B, C, H, W), drawing from torch's global generator."""
        return torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, images.flip(3), images)


AUGMENTATIONS = {
    "none": None,
    "affine": RandomAffine(),
    "flip": RandomFlip(),
    "crop": random_crop(),
}
