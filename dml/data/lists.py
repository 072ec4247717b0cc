"""The text lists in which the sources say which image is of which class."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dml.data import files
from dml.data.split import Split


def rows(path: Path, columns: int, header: int = 0) -> list[list[str]]:
    """The lines of a list, each split at white space into so many columns.

    The last column keeps its blanks, so that a file's name may have them. Empty lines and any
    kind of line end are taken.

    Raises:
        FileNotFoundError: no such list.
        ValueError: a line with fewer columns, by number.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: the data set is not here, or not whole")
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if number <= header or not line.strip():
            continue
        row = line.strip().split(maxsplit=columns - 1)
        if len(row) < columns:
            raise ValueError(f"{path}, line {number}: {columns} columns expected, got {line!r}")
        found.append(row)
    return found


def integers(path: Path, column: Sequence[str]) -> np.ndarray:
    """A column of whole numbers.

    Raises:
        ValueError: an entry that is none, and the list it is in.
    """
    wrong = [entry for entry in column if not entry.lstrip("-").isdigit()]
    if wrong:
        raise ValueError(f"{path}: {wrong[0]!r} should be a whole number")
    return np.array(column, dtype=np.int64)


def by_class(
    paths: Sequence[Path], ids: np.ndarray, names: dict[int, str], size: int | None
) -> Split:
    """A split of the images at these paths whose classes are the ids that occur, in order.

    Args:
        paths: of the images.
        ids: (n,) of their classes, as the source counts.
        names: id -> name.
        size: as in `files.read`.
    """
    kept, labels = np.unique(ids, return_inverse=True)
    return Split(files.read(paths, size), labels, [names[i] for i in kept.tolist()])


def halves(
    paths: Sequence[Path], ids: np.ndarray, names: dict[int, str], last: int, size: int | None
) -> tuple[Split, Split]:
    """Two splits: classes up to the id `last`, and those above it.

    Raises:
        ValueError: no class on one side.
    """
    paths, train = np.array(paths, dtype=object), ids <= last
    if not train.any() or train.all():
        side = "above" if train.any() else "up to"
        raise ValueError(f"no class {side} {last} is there, which the protocol needs")
    return tuple(by_class(paths[part], ids[part], names, size) for part in (train, ~train))
