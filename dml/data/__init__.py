"""Data sets by name: `load` reads, `verify` checks, `loader` serves batches (book/01_retrieval)."""

import inspect
from pathlib import Path

from dml.data import digits, folder, glyphs, transforms
from dml.data.files import Files, decode, each
from dml.data.loader import loader
from dml.data.split import Sets, Split

__all__ = ["NAMES", "Sets", "Split", "load", "loader", "options", "transforms", "verify"]

ROOT = Path(__file__).parents[2] / "datasets"
READERS = {"glyphs": glyphs.read, "digits": digits.read, "folder": folder.read}
NAMES = tuple(READERS)


def options(name: str) -> dict:
    """The options of a data set and their defaults, as `load` takes them.

    Raises:
        ValueError: an unknown name, with those there are.
    """
    if name not in READERS:
        raise ValueError(f"no data set is called {name!r}. There are: {', '.join(NAMES)}")
    parameters = inspect.signature(READERS[name]).parameters
    return {key: p.default for key, p in parameters.items() if key != "root"}


def load(name: str, root: str | Path | None = None, **given) -> Sets:
    """The data set called `name`.

    Args:
        name: one of NAMES.
        root: the folder of all data sets; None is datasets/ of the project.
        **given: options of this data set's reader, see `options`.

    Raises:
        ValueError: an unknown name or option, with the valid ones; and what the reader raises.
    """
    valid = options(name)
    unknown = sorted(given.keys() - valid.keys())
    if unknown:
        raise ValueError(
            f"{name} has no option {', '.join(unknown)}. Valid are: {', '.join(valid) or 'none'}"
        )
    return READERS[name](ROOT if root is None else Path(root), **given)


def verify(name: str, root: str | Path | None = None, **given) -> dict[str, dict[str, int]]:
    """Read a data set whole, every image, and count.

    Args:
        name, root, **given: as in `load`.

    Returns:
        {"train": {"images": n, "classes": c}, "query": ..., and "gallery" where there is one}.

    Raises:
        ValueError, FileNotFoundError: what is wrong, with the file or the class.
    """
    counts = {}
    for part, split in vars(load(name, root, **given)).items():
        if split is None:
            continue
        if isinstance(split.images, Files):
            each(decode, split.images.paths, f"{name} {part}")
        counts[part] = {"images": len(split), "classes": len(split.classes)}
    return counts
