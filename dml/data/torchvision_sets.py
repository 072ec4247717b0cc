"""CIFAR-10, CIFAR-100, MNIST and Fashion-MNIST, as torchvision reads them, for classification.

Train and query have the same classes; images are in memory.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torchvision import datasets

from dml.data.split import Sets, Split


def read(root: Path, download: bool = False, *, source: Callable) -> Sets:
    """Read one of torchvision's sets below `root`.

    Args:
        root: folder of the data sets, in torchvision's layout.
        download: fetch what is missing.
        source: the class in torchvision.datasets.

    Returns:
        Sets of uint8 images (n, 3, 32, 32), or (n, 1, 28, 28) for the two kinds of MNIST.

    Raises:
        FileNotFoundError: the files are not there, or not the right ones.
    """
    splits = []
    for train in (True, False):
        try:
            part = source(root, train=train, download=download)
        except RuntimeError as error:
            raise FileNotFoundError(
                f"{source.__name__} is not below {root}, or not whole: {error}"
            ) from None
        images = torch.as_tensor(part.data)
        images = images.permute(0, 3, 1, 2).contiguous() if images.ndim == 4 else images[:, None]
        splits.append(Split(images, part.targets, part.classes))
    return Sets(*splits)


READERS = {
    "cifar10": partial(read, source=datasets.CIFAR10),
    "cifar100": partial(read, source=datasets.CIFAR100),
    "mnist": partial(read, source=datasets.MNIST),
    "fashion_mnist": partial(read, source=datasets.FashionMNIST),
}
