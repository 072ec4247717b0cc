"""A step of the Gaussian kernels (forward and backward) and the search for neighbours beside the
released code's way: a loop over examples that fetches each one's centres and sums by masks, and a
full sort of all distances. One thread; CPU time as a ratio, and peak memory beyond the inputs.

    python benchmarks/nngk.py [--centres 5000] [--repeats 15] [--json FILE]

The loop is written anew from the formula. Rounds are interleaved and ratios are taken within a
round, so that a machine that is busy for a while slows both alike. Memory is measured in a process
of its own (Linux).
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from threadpoolctl import threadpool_limits

from dml import nngk

B, N, D, C, SIGMA = 32, 200, 2048, 100, 10.0


class Case:
    """A batch, its labels, and a classifier with trained weights."""

    def __init__(self, centres: int):
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(centres, D, generator=generator)
        y = torch.arange(centres) % C
        self.kernels = nngk.GaussianKernels(x, y, SIGMA, N)
        self.kernels.log_weights.data = 0.1 * torch.randn(centres, generator=generator)
        self.features = (x[:B] + torch.randn(B, D, generator=generator)).requires_grad_()
        self.own = torch.arange(B)
        # the released code looks for neighbours now and then; its step has them
        self.found = nngk.nearest(self.features.detach(), x, N, self.own[:, None])
        # of a class that is among them: of another, the released code has the log of its 1e-10
        self.labels = y[self.found[:, 0]]

    def backward(self, loss):
        """Value and gradients, as numbers to compare."""
        self.features.grad = self.kernels.log_weights.grad = None
        loss.backward()
        return loss.detach(), self.features.grad, self.kernels.log_weights.grad


def released_step(case):
    """Example by example, with the 1e-10 in the logarithm."""
    kernels, log_p = case.kernels, []
    classes = torch.arange(C)[:, None]
    for feature, found in zip(case.features, case.found, strict=True):
        distance = (feature - kernels.centres[found]).square().sum(1)  # (N,)
        strength = torch.exp(-distance / (2 * SIGMA**2)) * kernels.log_weights[found].exp()
        own = (kernels.centre_labels[found] == classes) * strength  # (C, N)
        log_p.append(torch.log(own.sum(1) / strength.sum() + 1e-10))
    return case.backward(F.nll_loss(torch.stack(log_p), case.labels))


def step(case):
    """One product with all centres; the neighbours are searched in every step."""
    return case.backward(F.nll_loss(case.kernels(case.features, case.own), case.labels))


def released_search(case):
    """All distances by torch, sorted whole."""
    x = case.features.detach()
    distance = torch.cdist(x, case.kernels.centres)
    distance.scatter_(1, case.own[:, None], torch.inf)
    return distance.argsort(1)[:, :N]


def search(case):
    """The module's search."""
    return nngk.nearest(case.features.detach(), case.kernels.centres, N, case.own[:, None])


PAIRS = {"step": (released_step, step), "search": (released_search, search)}
METHODS = {method.__name__: method for pair in PAIRS.values() for method in pair}


def peak_memory(method: str, centres: int) -> float:
    """MB that a method needs beyond its inputs and the imported libraries."""
    case = Case(centres)
    METHODS[method](Case(300))  # imports, thread pools
    status = Path("/proc/self/status")
    before = int(re.search(r"VmRSS:\s+(\d+)", status.read_text())[1])
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    METHODS[method](case)
    return (int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1]) - before) / 1024


def difference(task: str, old, new) -> float:
    """Largest difference of value and gradients; of a search, the part of other neighbours."""
    if task == "search":
        return 1 - (old.sort(1).values == new.sort(1).values).float().mean().item()
    return max((a - b).abs().max().item() for a, b in zip(old, new, strict=True))


def measure(task: str, centres: int, repeats: int) -> dict:
    """One row."""
    case, seconds, results = Case(centres), ([], []), [None, None]
    for _ in range(repeats + 1):  # the first round warms up
        for side, method in enumerate(PAIRS[task]):
            start = time.process_time()
            results[side] = method(case)
            seconds[side].append(time.process_time() - start)
    old, new = (times[1:] for times in seconds)
    memory = [
        float(
            subprocess.run(
                [sys.executable, __file__, "--memory", method.__name__, "--centres", str(centres)],
                check=True,
                capture_output=True,
            ).stdout
        )
        for method in PAIRS[task]
    ]
    return {
        "task": task,
        "centres": centres,
        "released ms": round(1000 * statistics.median(old), 1),
        "dml ms": round(1000 * statistics.median(new), 1),
        "times faster": round(statistics.median(a / b for a, b in zip(old, new, strict=True)), 2),
        "released MB": round(memory[0], 1),
        "dml MB": round(memory[1], 1),
        "largest difference": difference(task, *results),
    }


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--centres", type=int, default=5000)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument("--memory", choices=METHODS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    threadpool_limits(1)
    torch.set_num_threads(1)
    if options.memory:
        print(peak_memory(options.memory, options.centres))
        return
    rows = [measure(task, options.centres, options.repeats) for task in PAIRS]
    columns = list(rows[0])
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for row in rows:
        print("| " + " | ".join(str(value) for value in row.values()) + " |")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
