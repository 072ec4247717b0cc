"""The state of a run in a folder, whole or not at all: stopping is safe (book/06_training).

Accelerate writes and reads what the next epoch depends on: weights, optimiser, schedule, scaler and
random numbers. Here is what it leaves open: a folder that is whole or not there, one before it that
takes its place where it is damaged, and a run that is continued as no other.
"""

from __future__ import annotations

import os
import shutil
import warnings
import zipfile
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.checkpointing import load_accelerator_state, save_accelerator_state
from accelerate.utils import load as read

RUN = "run.bin"  # beside Accelerate's files: what is this project's own


def save(path: Path, config: dict, parts, history: list[dict]) -> None:
    """Write the state after an epoch to the folder `path`, and keep the one before as `previous`.

    Args:
        path: the folder.
        config: every setting of the run, by its name.
        parts: `dml.train.Parts`, what the run trains.
        history: of each epoch, what a record holds of it.

    Raises:
        OSError: it could not be written; what was there is as it was.
    """
    partial = path.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed in the middle
    try:
        partial.mkdir(parents=True)
        save_accelerator_state(
            *(partial, [parts.network.state_dict(), parts.criterion.state_dict()]),
            *([parts.optimizer], [parts.schedule], []),
            *(0, len(history), parts.scaler),
            safe_serialization=False,  # torch's files have a checksum, safetensors' have none
        )
        run = {"config": config, "history": history, "mixing": parts.rng.bit_generator.state}
        run["files"] = sorted(file.name for file in partial.iterdir())
        torch.save(run, partial / RUN)
        for file in partial.iterdir():
            with file.open("rb") as written:
                os.fsync(written.fileno())
    except (OSError, RuntimeError) as error:  # torch's own is a RuntimeError
        shutil.rmtree(partial, ignore_errors=True)
        raise OSError(
            f"{path} could not be written, is the disk full? The same command will go on from the "
            f"one before it ({error})"
        ) from error
    if path.exists():
        shutil.rmtree(previous(path), ignore_errors=True)
        path.replace(previous(path))
    partial.replace(path)  # at every moment one of the two is whole


def previous(path: Path) -> Path:
    """The checkpoint before the one at `path`, which is kept in case that one is damaged."""
    return path.with_suffix(".previous")


def load(path: Path, config: dict, parts) -> list[dict]:
    """Bring `parts` to the newest state at `path` that is whole; the history of its epochs.

    Args, returns: as `save` had them; an empty history where there is no such state, and the run
    starts anew, with `parts` as they are.

    Raises:
        ValueError: it is of a run with another configuration, with what differs.

    Warns:
        UserWarning: a checkpoint that is damaged.
    """
    for folder in filter(Path.exists, (path, previous(path))):
        if culprit := _damage(folder):
            warnings.warn(f"{folder} is damaged ({culprit}): going on from before", stacklevel=3)
            continue
        run = read(folder / RUN)
        if other := [key for key in config if run["config"].get(key) != config[key]]:
            raise ValueError(
                f"{folder} is of a run with another {', '.join(other)}: remove it or give this run "
                "a tag"
            )
        PartialState()  # Accelerate's log asks which process it is
        load_accelerator_state(
            *(folder, [parts.network, parts.criterion], [parts.optimizer], [parts.schedule], []),
            *(0, parts.scaler),  # every process is a replica of the first, which wrote
        )
        parts.rng.bit_generator.state = run["mixing"]
        return run["history"]
    return []


def _damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, by the checksums of its files: torch.load does not look."""

    def culprit(name: str) -> str | None:
        try:
            with zipfile.ZipFile(folder / name) as archive:
                part = archive.testzip()
        except (zipfile.BadZipFile, FileNotFoundError) as error:
            part = error
        return f"{name}: {part}" if part else None

    return culprit(RUN) or next(filter(None, map(culprit, read(folder / RUN)["files"])), None)
