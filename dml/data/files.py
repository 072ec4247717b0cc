"""Images in files: decoded to 8-bit RGB whatever their kind, one at a time or all at once."""

import os
from collections.abc import Iterable, Sequence
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
        paths = self.paths[i]
        return decode(paths) if isinstance(paths, str) else Files(paths)


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
            return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
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


def decode_all(paths: Sequence[Path], size: int) -> Tensor:
    """All images (n, 3, size, size) uint8, decoded by as many threads as there are cores.

    Raises:
        ValueError: as `decode`.
    """
    images = torch.empty(len(paths), 3, size, size, dtype=torch.uint8)

    def fill(i: int) -> None:
        images[i] = decode(paths[i], size)

    each(fill, range(len(paths)), "decoding")
    return images


def each(function, items: Sequence, title: str) -> list:
    """`function` of every item, in threads (PIL decodes outside Python's lock), with a bar."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        bar = tqdm(pool.map(function, items), total=len(items), desc=title, unit="image", delay=2)
        return list(bar)
