"""What a computation costs beside another: time as ratios within rounds, memory at its peak
(book/12_speed)."""

import time
import weakref
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def seconds(calls: dict[str, Callable[[], object]], rounds: int, warm_up: int = 2) -> pd.DataFrame:
    """How long each call takes, a column a call and a row a round; the calls of a round follow one
    another, so that a machine that is busy for a while slows them all.

    Seconds of the processor, not of the clock, so that other programs count less; with CUDA,
    seconds of the clock until the device is done.
    """
    cuda = torch.cuda.is_available()
    clock = time.perf_counter if cuda else time.process_time
    rows = []
    for _ in range(warm_up + rounds):
        row = {}
        for name, call in calls.items():
            start = clock()
            call()
            if cuda:
                torch.cuda.synchronize()
            row[name] = clock() - start
        rows.append(row)
    return pd.DataFrame(rows[warm_up:])


def ratios(measured: pd.DataFrame, to: str) -> pd.Series:
    """The median over rounds of each column's ratio to the column `to` of the same round."""
    return measured.div(measured[to], axis=0).median()


def report(rows: list[dict], out: Path | None) -> None:
    """Print rows as a table and, with `out`, write them to that file as CSV."""
    table = pd.DataFrame(rows)
    print(table.round(2).to_string(index=False))
    if out:
        table.to_csv(out, index=False, float_format="%.4g")


def peak_memory(call: Callable[[], object]) -> int:
    """The most bytes of tensors, on any device, that a call has alive at once beyond what was
    before. What an operation takes and gives back inside is not seen."""
    with _Live() as live:
        call()
    return live.peak


class _Live(TorchDispatchMode):
    """Adds up the storages that operations make, until they are freed."""

    def __init__(self):
        super().__init__()
        self.seen, self.now, self.peak = set(), 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = {
            x.untyped_storage().data_ptr()
            for x in tree_leaves((args, kwargs))
            if isinstance(x, torch.Tensor)
        }
        made = function(*args, **(kwargs or {}))
        for x in tree_leaves(made):
            if isinstance(x, torch.Tensor):
                storage = x.untyped_storage()
                key, size = storage.data_ptr(), storage.nbytes()
                if size and key not in self.seen and key not in given:
                    self.seen.add(key)
                    self.now += size
                    weakref.finalize(storage, self._free, key, size)
        self.peak = max(self.peak, self.now)
        return made

    def _free(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.now -= size
