"""What every reader returns: splits of images with labels, and the sets of a protocol."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset


class Split(Dataset):
    """Images with labels that count from 0 without gaps.

    Args:
        images: a uint8 tensor (n, C, H, W) where they fit in memory, else a sequence whose items
            are uint8 tensors (C, H, W), such as `dml.data.files.Files`.
        labels: (n,) integers from 0 to len(classes) - 1, each of them present.
        classes: the names of the classes, in the order of the labels.

    Raises:
        ValueError: lengths that differ, or labels with a gap.
    """

    def __init__(self, images: Tensor | Sequence[Tensor], labels, classes: Sequence[str]):
        labels = torch.as_tensor(labels, dtype=torch.int64)
        if len(images) != len(labels):
            raise ValueError(f"{len(images)} images but {len(labels)} labels")
        present = torch.unique(labels).tolist()
        if present != list(range(len(classes))):
            missing = sorted(set(range(len(classes))) - set(present))
            culprit = (
                f"class {classes[missing[0]]!r} has no image" if missing else "too many labels"
            )
            raise ValueError(f"labels must be 0 to {len(classes) - 1}, each present: {culprit}")
        self.images, self.labels, self.classes = images, labels, list(classes)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.images[i], int(self.labels[i])

    def take(self, indices) -> "Split":
        """The images at these indices, in their order, with labels contiguous among themselves."""
        indices = torch.as_tensor(indices, dtype=torch.int64)
        kept, labels = torch.unique(self.labels[indices], return_inverse=True)
        return Split(self.images[indices], labels, [self.classes[c] for c in kept.tolist()])

    def of_classes(self, labels) -> "Split":
        """The images of these classes, in the order in which they are here."""
        labels = torch.as_tensor(np.asarray(labels), dtype=torch.int64)
        return self.take(torch.isin(self.labels, labels).nonzero().flatten())


@dataclass(frozen=True)
class Sets:
    """A protocol: train, then search `query` among itself (gallery None) or in `gallery`."""

    train: Split
    query: Split
    gallery: Split | None = None

    def fold(self, i: int, of: int) -> "Sets":
        """Part `i` of `of` equal parts of the training classes, in their order, as queries and the
        other parts to train on; the test classes stay out of sight.

        To choose hyper-parameters with, as `A Metric Learning Reality Check' (Musgrave et al., ECCV
        2020) does with four.

        Raises:
            ValueError: no such part, or one without classes.
        """
        n = len(self.train.classes)
        if not 2 <= of <= n // 2 or not 0 <= i < of:
            raise ValueError(
                f"fold {i} of {of}: there are 2 to {n // 2} folds of {n} classes, from 0"
            )
        held_out = np.array_split(np.arange(n), of)[i]
        others = np.setdiff1d(np.arange(n), held_out)
        return Sets(self.train.of_classes(others), self.train.of_classes(held_out))
