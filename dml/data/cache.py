"""Decoded images in one memory-mapped file of bytes, so that no step waits for a decoder.

Built once, by all cores; then every process maps the same pages. Images keep their shape: the
shorter side is `short` pixels, as the papers' test transform makes it.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2

from dml.data.files import Files, decode, each


class Cached(Sequence):
    """A sequence of images (3, H, W) uint8, views of a memory-mapped file.

    Args:
        folder: as `build` makes it.
        chosen: indices of the images, in order; None for all.
    """

    def __init__(self, folder: Path, chosen: np.ndarray | None = None):
        self.folder = folder
        index = np.load(folder / "index.npy")  # (n, 3): where an image begins, height, width
        self.index = index if chosen is None else index[chosen]
        self.chosen = np.arange(len(index)) if chosen is None else chosen
        # copy on write: torch wants memory that it may write to, and nothing reaches the file
        self.bytes = np.memmap(folder / "images.u8", np.uint8, mode="c")

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i):
        """The image at an index, or the `Cached` at several."""
        if np.ndim(i):
            return Cached(self.folder, self.chosen[np.asarray(i)])
        start, height, width = self.index[i].tolist()
        pixels = self.bytes[start : start + height * width * 3].reshape(height, width, 3)
        return torch.from_numpy(pixels).permute(2, 0, 1)

    def __reduce__(self):
        return Cached, (self.folder, self.chosen)  # another process maps the file, no bytes travel


def build(images: Files, folder: Path, short: int) -> Cached:
    """The cache of these images in a folder, made if it is not there or not of these files.

    What files a cache is of is known by their names, sizes and times of change. It appears whole or
    not at all: a stopped build leaves nothing that is taken for one.

    Args:
        images: what to decode.
        folder: of the cache; what is in it is replaced where it is of other files.
        short: pixels of the shorter side.

    Raises:
        ValueError: an image that cannot be read, by name.
        OSError: no space left for it, with what it needs.
    """
    key = _key(images, short)
    stamp = folder / "key.json"
    if stamp.is_file() and json.loads(stamp.read_text()) == key:
        return Cached(folder)
    partial = folder.with_name(f"{folder.name}.partial{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        index, start = [], 0
        with (partial / "images.u8").open("wb") as file:
            for image in each(lambda path: _shorten(path, short), images.paths, f"cache {short}"):
                file.write(image.numpy().tobytes())
                index.append((start, *image.shape[:2]))
                start += image.numel()
        np.save(partial / "index.npy", np.array(index, dtype=np.int64))
        (partial / "key.json").write_text(json.dumps(key))
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    except OSError as error:
        raise OSError(
            error.errno, f"the cache of {len(images)} images could not be written: {error}"
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Cached(folder)


def _shorten(path: str, short: int) -> Tensor:
    image = v2.functional.resize(decode(path), [short], antialias=True)
    return image.permute(1, 2, 0).contiguous()  # (H, W, 3): crops of it resize fastest


def _key(images: Files, short: int) -> dict:
    digest = hashlib.sha256()
    for path in images.paths:
        stat = os.stat(path)
        digest.update(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return {"images": len(images), "short": short, "files": digest.hexdigest()}
