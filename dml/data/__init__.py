"""Data sets by name: `load` reads, `verify` checks, `loader` serves batches (book/01_retrieval)."""

import inspect
import warnings
from collections import deque
from dataclasses import replace
from functools import partial
from pathlib import Path

from dml.data import (
    archives,
    cars,
    cub,
    digits,
    emoji,
    flowers17,
    folder,
    glyphs,
    inshop,
    sop,
    torchvision_sets,
    transforms,
)
from dml.data import cache as caches
from dml.data.files import Files, decode, each
from dml.data.loader import loader
from dml.data.samplers import label_fraction
from dml.data.split import Sets, Split

__all__ = [
    "NAMES",
    "PUBLISHED",
    "Sets",
    "Split",
    "download",
    "label_fraction",
    "load",
    "loader",
    "options",
    "transforms",
    "verify",
]

ROOT = Path(__file__).parents[2] / "datasets"
READERS = {
    "glyphs": glyphs.read,
    "digits": digits.read,
    "folder": folder.read,
    "emoji": emoji.read,
    "cub": cub.read,
    "cars": cars.read,
    "sop": sop.read,
    "inshop": inshop.read,
    "flowers17": flowers17.read,
    **torchvision_sets.READERS,
}
NAMES = tuple(READERS)
# images and classes of each part, as the sources and the papers count them
PUBLISHED = {
    "cub": {"train": (5864, 100), "query": (5924, 100)},
    "cars": {"train": (8054, 98), "query": (8131, 98)},
    "sop": {"train": (59551, 11318), "query": (60502, 11316)},
    "inshop": {"train": (25882, 3997), "query": (14218, 3985), "gallery": (12612, 3985)},
    "cifar10": {"train": (50000, 10), "query": (10000, 10)},
    "cifar100": {"train": (50000, 100), "query": (10000, 100)},
    "mnist": {"train": (60000, 10), "query": (10000, 10)},
    "fashion_mnist": {"train": (60000, 10), "query": (10000, 10)},
}


def options(name: str) -> dict:
    """The options of a data set and their defaults, as `load` takes them.

    Raises:
        ValueError: an unknown name, with those there are.
    """
    if name not in READERS:
        raise ValueError(f"no data set is called {name!r}. There are: {', '.join(NAMES)}")
    parameters = inspect.signature(READERS[name]).parameters
    return {key: p.default for key, p in parameters.items() if key not in ("root", "source")}


def load(name: str, root: str | Path | None = None, cache: int | None = None, **given) -> Sets:
    """The data set called `name`.

    Args:
        name: one of NAMES.
        root: the folder of all data sets; None is datasets/ of the project.
        cache: decode images in files once, with this shorter side (256 is the papers'), and map
            them from `root`/cache ever after; None decodes them each time.
        **given: options of this data set's reader, see `options`.

    Raises:
        ValueError: an unknown name or option, with the valid ones; a cache of a set that is in
            memory; and what the reader raises.
        FileNotFoundError: a data set that is not there, or a part of it, by name.

    Warns:
        UserWarning: other counts than the published ones.
    """
    valid = options(name)
    unknown = sorted(given.keys() - valid.keys())
    if unknown:
        raise ValueError(
            f"{name} has no option {', '.join(unknown)}. Valid are: {', '.join(valid) or 'none'}"
        )
    root = ROOT if root is None else Path(root)
    try:
        sets = READERS[name](root, **given)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}. {archives.how_to_get(name, root)}".rstrip()) from None
    _compare(name, sets)
    return sets if cache is None else _cached(name, sets, root, cache)


def download(name: str, root: str | Path | None = None) -> dict[str, dict[str, int]]:
    """Fetch a data set below `root`, and `verify` it; what is there already is not fetched.

    Raises:
        ValueError, FileNotFoundError, OSError: see `dml.data.archives.download`; where no link
            leads to it, what to do by hand.
    """
    fetch = emoji.download if name == "emoji" else partial(archives.download, name)
    fetch(ROOT if root is None else Path(root))
    return verify(name, root)


def verify(name: str, root: str | Path | None = None, **given) -> dict[str, dict[str, int]]:
    """Read a data set whole, every image, and count.

    Args:
        name: as in `load`.
        root: as in `load`.
        **given: as in `load`.

    Returns:
        {"train": {"images": n, "classes": c}, "query": ..., and "gallery" where there is one}.

    Raises:
        ValueError: a file or a class that is wrong, by name.
        FileNotFoundError: what is missing, by name.

    Warns:
        UserWarning: other counts than the published ones.
    """
    counts = {}
    for part, split in _parts(load(name, root, **given)).items():
        if isinstance(split.images, Files):
            deque(each(decode, split.images.paths, f"{name} {part}"), maxlen=0)
        counts[part] = {"images": len(split), "classes": len(split.classes)}
    return counts


def _parts(sets: Sets) -> dict[str, Split]:
    return {part: split for part, split in vars(sets).items() if split is not None}


def _compare(name: str, sets: Sets) -> None:
    for part, (images, classes) in PUBLISHED.get(name, {}).items():
        split = vars(sets)[part]
        if (len(split), len(split.classes)) != (images, classes):
            warnings.warn(
                f"{name}: {part} has {len(split):,} images of {len(split.classes):,} classes, the "
                f"published protocol {images:,} of {classes:,}: results are not comparable",
                stacklevel=3,
            )


def _cached(name: str, sets: Sets, root: Path, short: int) -> Sets:
    if not isinstance(sets.train.images, Files):
        raise ValueError(f"{name} is in memory as it was loaded: cache={short} is for files")
    built = {}
    for part, split in _parts(sets).items():
        images = caches.build(split.images, root / "cache" / f"{name}-{part}-{short}", short)
        built[part] = Split(images, split.labels, split.classes)
    return replace(sets, **built)
