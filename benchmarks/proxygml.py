"""A step of ProxyGML, forward and backward, beside the released formulation: CPU time on one thread
as a ratio, peak memory beyond embeddings and proxies, and how both grow to a million proxies.

    python benchmarks/proxygml.py [--sizes cub cars sop n10k n100k n1m] [--repeats 9] [--out FILE]

Rounds are interleaved and ratios are taken within a round, so that a machine that is busy for a
while slows both alike. Memory is measured in a process of its own (Linux).
"""

import argparse
import csv
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from dml import proxygml

SIZES = {  # classes, proxies a class, dimensions, weight_lambda; r = 0.05, batch 32 throughout
    "tiny": (50, 2, 16, 0.3),  # to try the script
    "cub": (100, 12, 512, 0.3),
    "cars": (98, 12, 512, 0.3),
    "sop": (11_318, 1, 512, 0.0),
    "n10k": (10_000, 1, 128, 0.0),
    "n100k": (100_000, 1, 128, 0.0),
    "n1m": (1_000_000, 1, 128, 0.0),
    "n1m/12": (83_334, 12, 128, 0.0),
}
BATCH, R = 32, 0.05
FITS = 4 << 30  # bytes of a one-hot matrix that this script is ready to hold


class Released(torch.nn.Module):
    """The formulation of the authors' code, written anew from its description: every step a dense
    matrix, labels one-hot, the graph a mask over all proxies, and the mask of the softmax the
    scores that are not exactly 0."""

    def __init__(self, loss: proxygml.ProxyGML):
        super().__init__()
        classes, each, _ = loss.proxies.shape
        self.k, self.weight_lambda = loss.kept, loss.weight_lambda
        self.proxies = torch.nn.Parameter(loss.proxies.detach().flatten(0, 1).clone())
        self.label = torch.arange(classes).repeat_interleave(each)  # (C N,)
        self.one_hot = torch.zeros(classes * each, classes).scatter_(1, self.label[:, None], 1.0)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The loss of a batch, a scalar."""
        proxies = F.normalize(self.proxies, dim=1)
        similarity = F.normalize(embeddings, dim=1) @ proxies.T  # (B, C N)
        biased = similarity + 1000 * self.one_hot[:, labels].T
        graph = torch.zeros_like(similarity).scatter_(1, biased.topk(self.k).indices, 1.0)
        score = (graph * similarity) @ self.one_hot  # (B, C)
        weight = (score != 0) * score.exp()
        probability = weight / weight.sum(1, keepdim=True)
        loss = -(probability.gather(1, labels[:, None]) + 1e-20).log().mean()
        if self.weight_lambda:
            own = proxies @ proxies.T @ self.one_hot  # (C N, C)
            loss = loss + self.weight_lambda * F.cross_entropy(own, self.label)
        return loss


def problem(size: str):
    """A loss, and a batch for it."""
    classes, each, dimensions, weight_lambda = SIZES[size]
    torch.manual_seed(0)
    loss = proxygml.ProxyGML(classes, dimensions, each, R, weight_lambda)
    embeddings = torch.randn(BATCH, dimensions, requires_grad=True)
    return loss, embeddings, torch.randint(0, classes, (BATCH,))


METHODS = {"dml": lambda loss: loss, "released": Released}


def fits(method: str, size: str) -> bool:
    """Whether the one-hot matrix of the released formulation can be held."""
    classes, each, *_ = SIZES[size]
    return method == "dml" or 4 * classes**2 * each <= FITS


def step(loss, embeddings: Tensor, labels: Tensor) -> float:
    """Forward and backward; the gradients are new each time, as an optimiser leaves them."""
    loss.proxies.grad = embeddings.grad = None
    value = loss(embeddings, labels)
    value.backward()
    return value.item()


def status(key: str) -> float:
    """Memory of this process in MB: VmRSS now, VmHWM at its peak."""
    return int(re.search(rf"{key}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def peak_memory(method: str, size: str) -> float:
    """MB that a step needs beyond embeddings, proxies and the imported libraries: gradients,
    everything in between, and the one-hot labels where there are any."""
    step(METHODS[method](problem("tiny")[0]), *problem("tiny")[1:])  # imports, thread pools
    loss, *batch = problem(size)
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    method_loss = METHODS[method](loss)
    copied = 0 if method_loss is loss else loss.proxies.numel() * 4 / 2**20
    step(method_loss, *batch)
    return status("VmHWM") - before - copied


def measure(size: str, repeats: int) -> list[dict]:
    """One row a method."""
    loss, *batch = problem(size)
    methods = {name: make(loss) for name, make in METHODS.items() if fits(name, size)}
    seconds, values, gradients = {name: [] for name in methods}, {}, {}
    for round_ in range(repeats + 1):
        for name, method in methods.items():
            start = time.process_time()
            values[name] = step(method, *batch)
            if round_:  # the first one warms up
                seconds[name].append(time.process_time() - start)
            else:
                gradients[name] = batch[0].grad, method.proxies.grad.view_as(loss.proxies)
    if len(methods) == 2:
        assert abs(values["dml"] - values["released"]) < 1e-5, values
        for ours, theirs in zip(*gradients.values(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)
    classes, each, dimensions, _ = SIZES[size]
    rows = []
    for name in METHODS:
        row = {"size": size, "classes": classes, "proxies": classes * each, "method": name}
        row |= dict.fromkeys(("ms", "time / dml", "extra MB"))  # empty where it does not fit
        if name in methods:
            pairs = zip(seconds[name], seconds["dml"], strict=True)
            command = [sys.executable, __file__, "--memory", name, "--sizes", size]
            memory = float(subprocess.run(command, check=True, capture_output=True).stdout)
            row["ms"] = round(1e3 * statistics.median(seconds[name]), 1)
            row["time / dml"] = round(statistics.median(a / b for a, b in pairs), 2)
            row["extra MB"] = round(memory)
        one_hot = 4 * classes**2 * each if name == "released" else 0
        row["proxies MB"] = round(classes * each * dimensions * 4 / 2**20)
        rows.append(row | {"one-hot labels MB": round(one_hot / 2**20)})
    return rows


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    everything = [size for size in SIZES if size != "tiny"]
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=everything)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path, help="also write the rows to this CSV file")
    parser.add_argument("--memory", choices=METHODS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.memory:
        print(peak_memory(options.memory, options.sizes[0]))
        return
    rows = []
    for size in options.sizes:
        rows += measure(size, options.repeats)
        if size == options.sizes[0]:
            print("| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
        for row in rows[-len(METHODS) :]:
            shown = ("" if value is None else str(value) for value in row.values())
            print("| " + " | ".join(shown) + " |", flush=True)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with options.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
