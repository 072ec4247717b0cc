"""Utilization, the nearest training embedding of every test embedding, beside the bare product of
the two matrices, and its memory beyond them.

    python benchmarks/space.py [--sizes 10000 60000] [--rounds 1] [--out FILE]
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F

from dml import analysis, cost

D, CHUNK = 512, 2000


def measure(n: int, rounds: int) -> dict:
    """One row: n queries, n of the training set, unit vectors."""
    generator = torch.Generator().manual_seed(0)
    queries, gallery = (F.normalize(torch.randn(n, D, generator=generator)) for _ in range(2))

    def product():
        for start in range(0, n, CHUNK):
            for other in range(0, n, CHUNK):
                queries[start : start + CHUNK] @ gallery[other : other + CHUNK].T

    calls = {"product": product, "utilization": lambda: analysis.utilization(queries, gallery)}
    measured = cost.seconds(calls, rounds, warm_up=0)
    copies = queries.nbytes + gallery.nbytes  # normalised, as the measure does with any input
    extra = cost.peak_memory(calls["utilization"]) - copies
    return {
        "queries": n,
        "gallery": n,
        "time / product": cost.ratios(measured, "product")["utilization"],
        "extra MB": extra / 1e6,
        "all similarities MB": 4 * n * n / 1e6,
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 60_000])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    cost.report([measure(n, given.rounds) for n in given.sizes], given.out)


if __name__ == "__main__":
    main()
