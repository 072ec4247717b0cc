"""The state of a run in a file, whole or not at all: stopping is safe (book/06_training)."""

from __future__ import annotations

import os
import warnings
import zipfile
from pathlib import Path

import torch


def save(path: Path, state: dict) -> None:
    """Write a state, and keep the one that was there as `previous`.

    Raises:
        OSError: it could not be written; what was there is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    try:
        with partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:  # torch's own is a RuntimeError
        partial.unlink(missing_ok=True)
        raise OSError(
            f"{path} could not be written, is the disk full? The same command will go on from the "
            f"one before it ({error})"
        ) from error
    if path.exists():
        path.replace(previous(path))
    partial.replace(path)  # atomic: a reader sees a whole state at every moment


def previous(path: Path) -> Path:
    """The checkpoint before the one at `path`, which is kept in case that one is damaged."""
    return path.with_suffix(".previous.pt")


def load(path: Path, device: torch.device) -> dict | None:
    """The newest state at `path` that is whole, or None where there is none: a run starts anew.

    Warns:
        UserWarning: a checkpoint that is damaged.
    """
    for file in filter(Path.exists, (path, previous(path))):
        try:
            with zipfile.ZipFile(file) as archive:  # torch.load does not look at the checksums
                culprit = archive.testzip()
            if culprit is None:
                return torch.load(file, map_location=device, weights_only=True)
        except zipfile.BadZipFile as error:
            culprit = error
        warnings.warn(f"{file} is damaged ({culprit}): going on from before it", stacklevel=3)
    return None
