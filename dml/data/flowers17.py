"""Flowers17: 80 photographs of each of 17 flowers, for classification.

Layout: flowers17/jpg/image_0001.jpg to image_1360.jpg, the classes one after another.
"""

from pathlib import Path

import torch

from dml.data import files
from dml.data.samplers import label_fraction
from dml.data.split import Sets, Split

PER_CLASS = 80
CLASSES = (
    *("daffodil", "snowdrop", "lily of the valley", "bluebell", "crocus", "iris", "tiger lily"),
    *("tulip", "fritillary", "sunflower", "daisy", "colt's foot", "dandelion", "cowslip"),
    *("buttercup", "windflower", "pansy"),
)


def read(root: Path, train: float = 0.5, seed: int = 0, size: int | None = None) -> Sets:
    """Read Flowers17 below `root`. Train and query have the same classes.

    Args:
        root: folder that has flowers17/jpg/.
        train: part of each class that is for training, the rest is the query.
        seed: of the division.
        size: None leaves images in their files; else as in `dml.data.files.decode`, in memory.

    Raises:
        FileNotFoundError: an image that is missing.
        ValueError: a part that leaves nothing on one side.
    """
    jpg = root / "flowers17" / "jpg"
    if not jpg.is_dir():
        raise FileNotFoundError(f"{jpg} is missing: Flowers17 is not here")
    paths = [jpg / f"image_{i:04d}.jpg" for i in range(1, PER_CLASS * len(CLASSES) + 1)]
    labels = torch.arange(len(CLASSES)).repeat_interleave(PER_CLASS)
    whole = Split(files.read(paths, size), labels, CLASSES)
    chosen = label_fraction(labels, train, seed)
    rest = torch.ones(len(labels), dtype=torch.bool)
    rest[chosen] = False
    if not rest.any():
        raise ValueError(f"flowers17: train={train} leaves no image to test on")
    return Sets(whole.take(chosen), whole.take(rest.nonzero().flatten()))
