"""Which images form a batch: drawn from (seed, epoch) alone."""

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Sampler


class Batches(Sampler):
    """The batches of one epoch after another; `set_epoch` says which, so that a run can resume.

    Equal arguments, seeds and epochs give equal batches, however often and wherever they are drawn.

    Args:
        labels: (n,) of the split.
        batch_size: B.
        images_per_class: m; each batch then holds m images of each of B/m classes, and an epoch
            has as many batches as fit in n. None takes each image once an epoch.
        shuffle: draw at random and drop the last batch if it is not full; else in order, all.
        seed: of the draws.

    Yields:
        (indices (B,), a seed for whatever is random in this batch's images).

    Raises:
        ValueError: a batch size that does not fit the split or m, by name.
    """

    def __init__(self, labels, batch_size, images_per_class=None, shuffle=True, seed=0):
        self.labels, self.n = np.asarray(labels), len(labels)
        self.batch_size, self.m, self.shuffle = batch_size, images_per_class, shuffle
        self.seed, self.epoch = seed, 0
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be positive")
        if shuffle and batch_size > self.n:
            raise ValueError(f"batch_size={batch_size} exceeds the {self.n} images of the split")
        if images_per_class is not None:
            self._check_classes()

    def _check_classes(self) -> None:
        if not self.shuffle:
            raise ValueError("images_per_class belongs to training: it needs train=True")
        if self.m < 1 or self.batch_size % self.m:
            raise ValueError(
                f"images_per_class={self.m} does not divide batch_size={self.batch_size}"
            )
        wanted, there = self.batch_size // self.m, len(np.unique(self.labels))
        if wanted > there:
            raise ValueError(
                f"batch_size={self.batch_size} with images_per_class={self.m} needs {wanted} "
                f"classes, the split has {there}: batch_size may be at most {there * self.m}"
            )

    def set_epoch(self, epoch: int) -> None:
        """Draw the batches of this epoch next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.n // self.batch_size if self.shuffle else -(-self.n // self.batch_size)

    def __iter__(self) -> Iterator[tuple[np.ndarray, int]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        if self.m is not None:
            batches = per_class(self.labels, len(self), self.batch_size // self.m, self.m, rng)
        else:
            order = rng.permutation(self.n) if self.shuffle else np.arange(self.n)
            batches = np.split(order, range(self.batch_size, self.n, self.batch_size))
        seeds = rng.integers(2**62, size=len(self))
        yield from zip(batches, seeds.tolist(), strict=False)  # without a last, part one


def per_class(labels, batches, classes, m, rng) -> np.ndarray:
    """m images of each of some classes, for many batches at once, (batches, classes * m) indices.

    A batch's classes are different, and so are a class's images in it, unless it has fewer than m:
    then they are drawn with replacement.
    """
    order = np.argsort(labels, kind="stable")
    _, first, counts = np.unique(labels[order], return_index=True, return_counts=True)
    chosen = rng.random((batches, len(counts))).argsort(1)[:, :classes].reshape(-1)  # (rows,)
    size = counts[chosen]
    # Floyd's sampling of m out of `size`, all rows at once: the j-th draw is among the first
    # size - m + j + 1, and takes the last of those where it repeats an earlier one.
    drawn = np.empty((len(chosen), m), dtype=np.int64)
    for j in range(m):
        last = size - m + j
        draw = rng.integers(np.maximum(last, 0) + 1)
        repeats = (drawn[:, :j] == draw[:, None]).any(1)
        drawn[:, j] = np.where(repeats, last, draw)
    few = size < m
    drawn[few] = rng.integers(size[few, None], size=(few.sum(), m))
    return order[first[chosen, None] + drawn].reshape(batches, classes * m)


def label_fraction(labels, fraction: float, seed: int = 0) -> torch.Tensor:
    """Which images keep their labels: the same part of every class, at random.

    Args:
        labels: (n,).
        fraction: in (0, 1]; each class keeps the nearest whole number of its images.
        seed: of the draw. Equal arguments give equal indices.

    Returns:
        Their indices, rising.

    Raises:
        ValueError: a fraction outside (0, 1], or one that leaves a class without a label.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction={fraction} must be above 0 and at most 1")
    labels = np.asarray(labels)
    counts = np.bincount(labels)
    kept = np.floor(fraction * counts + 0.5).astype(np.int64)
    empty = np.flatnonzero((kept == 0) & (counts > 0))
    if len(empty):
        raise ValueError(
            f"fraction={fraction} leaves class {empty[0]}, of {counts[empty[0]]} images, unlabelled"
        )
    order = np.lexsort((np.random.default_rng(seed).random(len(labels)), labels))
    place = np.arange(len(labels)) - (counts.cumsum() - counts)[labels[order]]  # within the class
    return torch.from_numpy(np.sort(order[place < kept[labels[order]]]))
