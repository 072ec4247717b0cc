"""The loss alone: embedding mixup, forward and backward, beside the clean step of the same loss,
ours and pytorch-metric-learning's, on random embeddings.

    python benchmarks/losses.py [--batches 32 100 256 512] [--rounds 30] [--out FILE]
"""

import argparse
from pathlib import Path

import torch
from pytorch_metric_learning import distances, miners
from pytorch_metric_learning import losses as library

from dml import cost, losses, mixup

D = 512
LABELS = {  # kind of batch -> labels
    "5 of a class": lambda n: torch.arange(n) // 5,
    "random of 100": lambda n: torch.randint(100, (n,), generator=torch.Generator().manual_seed(0)),
}


def theirs(name: str, classes: int):
    """The library's clean step of a loss, (embeddings, labels) -> value; None where it has none."""
    cosine = distances.CosineSimilarity()
    made = {
        "contrastive": lambda: library.ContrastiveLoss(1, 0.5, distance=cosine),
        "lifted_structure": lambda: library.GeneralizedLiftedStructureLoss(0.5, distance=cosine),
        "multi_similarity": lambda: library.MultiSimilarityLoss(18, 75, 0.77),
        "proxy_anchor": lambda: library.ProxyAnchorLoss(classes, D),
        "nca": lambda: library.NCALoss(distance=cosine),
        "proxy_nca": lambda: library.ProxyNCALoss(classes, D, distance=cosine),
        "proxy_nca_pp": lambda: library.ProxyNCALoss(classes, D, softmax_scale=9, distance=cosine),
    }
    if name not in made:
        return None
    loss = made[name]()
    if name != "multi_similarity":
        return loss
    miner = miners.MultiSimilarityMiner()  # as its authors use it
    return lambda x, y: loss(x, y, miner(x, y))


def measure(name: str, kind: str, batch: int, rounds: int) -> dict:
    """One row: the cost of mixing as ratios of time and of peak memory."""
    torch.manual_seed(0)
    x, labels = torch.randn(batch, D, requires_grad=True), LABELS[kind](batch)
    classes = max(100, int(labels.max()) + 1)
    options = {"reduction": "nonzero_pairs"} if name == "contrastive" else {}  # the library's
    clean = losses.build(name, classes, D, **options)
    mixed, other = mixup.Metrix(clean), theirs(name, classes)
    steps = {"clean": lambda: clean(x, labels), "mixed": lambda: mixed(x, labels)}
    if other is not None:
        steps["library"] = lambda: other(x, labels)
    calls = {name: lambda step=step: step().backward() for name, step in steps.items()}
    measured = cost.seconds(calls, rounds)
    memory = {name: cost.peak_memory(call) for name, call in calls.items()}
    row = {"loss": name, "labels": kind, "batch": batch}
    for beside in [name for name in ("clean", "library") if name in calls]:
        row[f"time / {beside}"] = cost.ratios(measured, beside)["mixed"]
        row[f"memory / {beside}"] = memory["mixed"] / memory[beside]
    return row | {"mixed ms": 1e3 * measured["mixed"].median()}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 100, 256, 512])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = [
        measure(name, kind, batch, given.rounds)
        for name in losses.LOSSES
        for kind in LABELS
        for batch in given.batches
    ]
    cost.report(rows, given.out)


if __name__ == "__main__":
    main()
