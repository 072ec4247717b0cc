"""From a split to batches."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dml.data import transforms
from dml.data.samplers import Batches
from dml.data.split import Split


def loader(
    split: Split,
    batch_size: int,
    images_per_class: int | None = None,
    train: bool = False,
    transform: Callable | None = None,
    workers: int = 0,
    seed: int = 0,
) -> "Loader":
    """An iterable of batches: images (B, C, H, W) uint8 and labels (B,) int64.

    Args:
        split: where from.
        batch_size: B.
        images_per_class: m images of each of B/m classes in a batch; None draws freely.
        train: shuffle and drop the last batch if it is not full; else in order, every image.
        transform: a function of an image (C, H, W), or of a batch if it has `batched = True`.
            None leaves images in memory as they are, and cuts the papers' test crop (224) from
            images in files.
        workers: processes that prepare images. Images in memory need none: they are indexed.
        seed: equal seeds and epochs (`set_epoch`) give equal batches, for any number of workers.

    Raises:
        ValueError: sizes that do not fit the split, or a transform that does not fit the images.
    """
    batches = Batches(split.labels, batch_size, images_per_class, train, seed)
    in_memory, batched = isinstance(split.images, Tensor), getattr(transform, "batched", False)
    if batched and not in_memory:
        raise ValueError(
            f"{type(transform).__name__} is for images in memory, these are files: give the data "
            "set a size, or take a transform of single images"
        )
    if transform is None and not in_memory:
        transform = transforms.centre_crop()
    whole = in_memory and (transform is None or batched)
    return Loader(_Batch(split, transform, whole), batches, 0 if whole else workers)


class Loader:
    """The batches of one epoch after another, see `loader`."""

    def __init__(self, source: "_Batch", batches: Batches, workers: int):
        self.batches = batches
        self._loader = DataLoader(  # a sampler of whole batches: each is put together once
            source,
            sampler=batches,
            batch_size=None,
            generator=torch.Generator(),  # else it would draw from the global one
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def set_epoch(self, epoch: int) -> None:
        """Serve the batches of this epoch next."""
        self.batches.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self._loader)


class _Batch(Dataset):
    """The batch of given indices, its randomness from a given seed."""

    def __init__(self, split: Split, transform: Callable | None, whole: bool):
        self.split, self.transform, self.whole = split, transform, whole

    def __getitem__(self, batch: tuple[np.ndarray, int]) -> tuple[Tensor, Tensor]:
        indices, seed = batch
        labels = self.split.labels[indices]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach the GPU too
            if self.whole:
                images = self.split.images[indices]
                return (self.transform(images) if self.transform else images), labels
            images = self.split.images
            return torch.stack([self.transform(images[i]) for i in indices.tolist()]), labels
