"""Images in files: decoded to 8-bit RGB whatever their kind, one at a time or all at once."""

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm


class Files(Sequence):
    """A sequence of images (3, H, W) uint8 that are decoded when they are asked for."""

    def __init__(self, paths: Iterable[Path]):
        self.paths = np.array([str(path) for path in paths], dtype=object)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i):
        """The image at an index, or the `Files` at several."""
        return Files(self.paths[np.asarray(i)]) if np.ndim(i) else decode(self.paths[i])


def decode(path: str | Path, size: int | None = None) -> Tensor:
    """One image as 8-bit RGB, upright.

    Grey, palette, CMYK and 16-bit images are converted, what is transparent becomes white, and
    the rotation that a camera noted (EXIF) is applied.

    Args:
        path: the file.
        size: side of a square that the image is made to fill: its shorter side is resized
            (bicubic, antialiased), the rest of the longer side cut off at both ends. None keeps it.

    Returns:
        (3, H, W) uint8.

    Raises:
        ValueError: a file that is not an image or is cut short, by name.
        FileNotFoundError: no such file.
    """
    try:
        with Image.open(path) as image:
            image = _rgb(ImageOps.exif_transpose(image))
            if size is not None:
                image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
            return torch.from_numpy(np.array(image)).permute(2, 0, 1)
    except FileNotFoundError:
        raise FileNotFoundError(f"no such image: {path}") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is not an image that can be read: {error}") from None


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey; convert("RGB") would clip it at 255
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype("u1"))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def read(paths: Sequence[Path], size: int | None) -> Files | Tensor:
    """The images at these paths: left in their files, or with a `size` decoded into memory.

    Returns:
        Files, or (n, 3, size, size) uint8 decoded by as many threads as there are cores.

    Raises:
        FileNotFoundError: a file that is not there, by name, and how many there are not.
        ValueError: as `decode`.
    """
    _all_there(paths)
    if size is None:
        return Files(paths)
    images = torch.empty(len(paths), 3, size, size, dtype=torch.uint8)
    decoded = each(lambda path: decode(path, size), paths, "decoding")
    for i, image in enumerate(decoded):
        images[i] = image
    return images


def _all_there(paths: Sequence[Path]) -> None:
    """Each folder is listed once: asking for each file would take minutes on a network's disk."""
    folders = {path.parent for path in map(Path, paths)}
    there = {folder: set(os.listdir(folder)) for folder in folders if folder.is_dir()}
    missing = [p for p in map(Path, paths) if p.name not in there.get(p.parent, ())]
    if missing:
        raise FileNotFoundError(
            f"{missing[0]} is missing, {len(missing)} of {len(paths)} images are: unpack again"
        )


def each(function, items: Sequence, title: str) -> Iterator:
    """`function` of every item in order, in threads (PIL decodes without Python's lock)."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        done = pool.map(function, items)
        yield from tqdm(done, total=len(items), desc=title, unit="image", delay=2, mininterval=2)
