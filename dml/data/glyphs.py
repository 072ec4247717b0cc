"""Glyphs: retrieve a character across typefaces. Drawn in seconds, nothing to download.

A class is a Unicode character, its images are the typefaces that matplotlib ships (DejaVu Sans,
Sans Mono and Serif; STIX General; regular, italic, bold, bold italic). Like Stanford Online
Products it has many classes of few images, and training and test classes are disjoint.
"""

import unicodedata
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.ft2font import FT2Font
from PIL import ImageFont
from torch import Tensor

from dml.data.split import Sets, Split

TYPEFACES = (
    *("DejaVuSans", "DejaVuSans-Oblique", "DejaVuSans-Bold", "DejaVuSans-BoldOblique"),
    *("DejaVuSansMono", "DejaVuSansMono-Oblique"),
    *("DejaVuSansMono-Bold", "DejaVuSansMono-BoldOblique"),
    *("DejaVuSerif", "DejaVuSerif-Italic", "DejaVuSerif-Bold", "DejaVuSerif-BoldItalic"),
    *("STIXGeneral", "STIXGeneralItalic", "STIXGeneralBol", "STIXGeneralBolIta"),
)
MIN_TYPEFACES = 8  # two families at least: one alone draws a character in at most four
OVERSAMPLING = 2  # drawings are larger than images, so that a distorted edge stays smooth
BLOCK = 4096  # images distorted at a time: their float copies stay within 100 MB


def read(root=None, classes=None, seed=0, distortion=1.0, noise=0.15, size=32, copies=1) -> Sets:
    """Draw glyphs; a random half of the characters is for training, the other for testing.

    Args:
        root: ignored, nothing is stored.
        classes: number of characters, train and test together; None for all (about 3,000). Fewer
            are a part of all: the half, the images of a character do not depend on it.
        seed: of the halves, the distortions and the noise.
        distortion: strength of each image's random affine map; 0 centres the upright drawing.
        noise: standard deviation of the pixel noise, as a part of full ink; 0 for none.
        size: side of the square images in pixels.
        copies: images of each drawing, each with its own distortion and noise: more images a
            class, to classify seen ones.

    Returns:
        Sets of uint8 images (n, 1, size, size), ink bright on dark, a class's typefaces in the
        order of TYPEFACES, once more for each copy. Classes have the characters' Unicode names.

    Raises:
        ValueError: an option out of its range.
    """
    for name, value, valid in (
        ("distortion", distortion, distortion >= 0),
        ("noise", noise, noise >= 0),
        ("size", size, size >= 8),
        ("copies", copies, copies >= 1),
    ):
        if not valid:
            raise ValueError(f"glyphs: {name}={value} is too small")
    whole = _all(seed, float(distortion), float(noise), size, copies)
    # Train and test take turns in one random order, so that a smaller set is part of a larger one.
    order = np.random.default_rng(seed).permutation(len(whole.classes))
    if classes is not None:
        if not 4 <= classes <= len(order):
            raise ValueError(f"glyphs: classes={classes} is not in 4 to {len(order)}")
        order = order[:classes]
    return Sets(whole.of_classes(order[0::2]), whole.of_classes(order[1::2]))


@lru_cache(maxsize=4)
def _all(seed: int, distortion: float, noise: float, size: int, copies: int) -> Split:
    """Every character's images; kept for the process, since a notebook loads a set many times."""
    drawings, codes = draw(size)
    characters, labels = np.unique(codes, return_inverse=True)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.from_numpy(drawings)
    images = [distort(drawn, size, distortion, noise, generator) for _ in range(copies)]
    return Split(
        torch.cat(images), np.tile(labels, copies), [unicodedata.name(chr(c)) for c in characters]
    )


def draw(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Every typeface's upright drawing of every character that enough typefaces have.

    Characters whose drawings coincide (Latin A, Greek Alpha, Cyrillic A) are kept once: a drawing
    belongs to the first character that has it, and a character needs MIN_TYPEFACES of its own.
    Spaces, controls and combining marks are left out, and what does not fit in the frame.

    Returns:
        Drawings (n, s, s) uint8 with s = OVERSAMPLING * size, centred, ordered by character and
        typeface; the characters' code points (n,).
    """
    side = OVERSAMPLING * size
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    drawings, codes, first = [], [], {}
    for typeface in TYPEFACES:
        path = str(folder / f"{typeface}.ttf")
        font = ImageFont.truetype(path, 5 * side // 8, layout_engine=ImageFont.Layout.BASIC)
        for code in FT2Font(path).get_charmap():
            if unicodedata.category(chr(code))[0] in "CZM":
                continue
            mask, _ = font.getmask2(chr(code), mode="L")
            width, height = mask.size
            if not (0 < width <= side and 0 < height <= side):
                continue
            drawing = np.zeros((side, side), np.uint8)
            top, left = (side - height) // 2, (side - width) // 2
            ink = np.frombuffer(bytes(mask), np.uint8).reshape(height, width)
            drawing[top : top + height, left : left + width] = ink
            drawings.append(drawing)
            codes.append(code)
            key = drawing.tobytes()
            first[key] = min(code, first.get(key, code))
    owned = [i for i, d in enumerate(drawings) if first[d.tobytes()] == codes[i]]
    codes = np.array(codes)[owned]
    _, inverse, counts = np.unique(codes, return_inverse=True, return_counts=True)
    enough = counts[inverse] >= MIN_TYPEFACES
    order = np.argsort(codes[enough], kind="stable")
    kept = np.array(owned)[enough][order]
    return np.stack([drawings[i] for i in kept]), codes[enough][order]


def distort(
    drawings: Tensor, size: int, distortion: float, noise: float, generator: torch.Generator
) -> Tensor:
    """A random affine map of each drawing, and Gaussian noise on each pixel.

    Rotation up to 14 degrees, shear up to 0.18, width and height scaled by up to e^0.14, shift up
    to a twelfth of the side, all uniform and times `distortion`.

    Args:
        drawings: (n, s, s) uint8.
        size: side of the images.
        distortion, noise: as in `read`.
        generator: the source of randomness.

    Returns:
        Images (n, 1, size, size) uint8.
    """
    n = len(drawings)
    limits = torch.tensor([0.25, 0.18, 0.14, 0.14, 1 / 6, 1 / 6]) * distortion
    draws = (2 * torch.rand(n, 6, generator=generator) - 1) * limits
    angle, shear, log_width, log_height, right, down = draws.T  # (n,) each
    cos, sin = angle.cos(), angle.sin()
    row_x = torch.stack([cos, shear * cos - sin, right], 1) * torch.exp(log_width)[:, None]
    row_y = torch.stack([sin, shear * sin + cos, down], 1) * torch.exp(log_height)[:, None]
    maps = torch.stack([row_x, row_y], 1)  # (n, 2, 3)
    images = torch.empty(n, 1, size, size, dtype=torch.uint8)
    for start in range(0, n, BLOCK):
        block = slice(start, start + BLOCK)
        grid = F.affine_grid(maps[block], (len(maps[block]), 1, size, size), align_corners=False)
        ink = F.grid_sample(drawings[block, None].float(), grid, align_corners=False)
        ink += torch.randn(ink.shape, generator=generator) * (255 * noise)
        images[block] = ink.round_().clamp_(0, 255).to(torch.uint8)
    return images
