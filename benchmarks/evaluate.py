"""Exact retrieval at the sizes of CUB, In-Shop and SOP beside the bare matrix product, faiss (where
installed) and pytorch-metric-learning: CPU time on one thread as a ratio to the product in
OpenBLAS, and peak memory beyond the embeddings.

    python benchmarks/evaluate.py [--sizes cub inshop sop] [--repeats 3] [--json FILE]

Rounds are interleaved and ratios are taken within a round, so that a machine that is busy for a
while slows all methods alike. Memory is measured in a process of its own (Linux).
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN
from threadpoolctl import threadpool_limits

from dml import evaluate

try:
    import faiss
except ImportError:
    faiss = None

SIZES = {  # queries, gallery (None: the queries themselves), classes, noise, K of Recall@K
    "tiny": (1_000, None, 200, 3.5, (1, 10, 100)),  # to try the script
    "cub": (5_924, None, 100, 3.5, (1, 2, 4, 8)),
    "inshop": (14_218, 12_612, 3_985, 2.0, (1, 10, 20)),
    "sop": (60_502, None, 11_316, 2.0, (1, 10, 100, 1000)),
}
D, CHUNK = 512, 1000


def embeddings(size: str) -> dict:
    """Noisy classes around random centres, unit length; about as hard as a trained model's."""
    n, m, classes, noise, k = SIZES[size]
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(classes, D, generator=generator)

    def draw(count):
        labels = torch.randint(0, classes, (count,), generator=generator)
        points = torch.randn(count, D, generator=generator).mul_(noise)
        for start in range(0, count, CHUNK):
            points[start : start + CHUNK] += centres[labels[start : start + CHUNK]]
        return points.div_(points.norm(dim=1, keepdim=True)), labels

    query, labels = draw(n)
    gallery, gallery_labels = (None, None) if m is None else draw(m)
    return {"query": (query, labels), "gallery": gallery, "gallery_labels": gallery_labels, "k": k}


def product(case, multiply):
    """All similarities in chunks, kept nowhere: the least that a full pass costs."""
    query = case["query"][0]
    gallery = query if case["gallery"] is None else case["gallery"]
    for start in range(0, len(query), CHUNK):
        multiply(query[start : start + CHUNK], gallery)


def openblas(case):
    """The product in numpy's OpenBLAS."""
    product(case, lambda a, b: a.numpy() @ b.numpy().T)


def mkl(case):
    """The product in torch's MKL."""
    product(case, lambda a, b: a @ b.T)


def recall(case):
    """Recall@K alone, by counting."""
    options = {key: case[key] for key in ("gallery", "gallery_labels", "k")}
    return evaluate.retrieval(*case["query"], at_r=False, **options)


def everything(case):
    """The default call."""
    options = {key: case[key] for key in ("gallery", "gallery_labels", "k")}
    return evaluate.retrieval(*case["query"], **options)


def search(case):
    """Only faiss's search; a set that is searched against itself needs one neighbour more."""
    query = case["query"][0]
    alone = case["gallery"] is None
    gallery = query if alone else case["gallery"]
    index = faiss.IndexFlatIP(D)
    index.add(gallery.numpy())
    _, nearest = index.search(query.numpy(), max(case["k"]) + alone)
    return nearest


def faiss_recall(case, nearest) -> dict:
    """Recall@K of faiss's lists, to compare verdicts with; not timed."""
    labels, alone = case["query"][1], case["gallery"] is None
    gallery_labels = labels if alone else case["gallery_labels"]
    hit = gallery_labels.numpy()[nearest] == labels.numpy()[:, None]
    if alone:
        hit &= nearest != np.arange(len(nearest))[:, None]
    sizes = torch.bincount(gallery_labels, minlength=int(labels.max()) + 1)
    answerable = (sizes[labels] > int(alone)).numpy()
    return {f"recall_at_{k}": hit[answerable, : k + alone].any(1).mean() for k in case["k"]}


def library(case):
    """The calculator of pytorch-metric-learning with its own exact search."""
    names = ("precision_at_1", "r_precision", "mean_average_precision_at_r")
    neighbours = CustomKNN(CosineSimilarity(), batch_size=CHUNK)
    calculator = AccuracyCalculator(include=names, k="max_bin_count", knn_func=neighbours)
    reference = () if case["gallery"] is None else (case["gallery"], case["gallery_labels"])
    return calculator.get_accuracy(*case["query"], *reference)


METHODS = {
    "bare product, OpenBLAS": openblas,
    "bare product, torch": mkl,
    "dml, Recall@K": recall,
    "dml, Recall@K, R-Precision, MAP@R": everything,
    "faiss IndexFlatIP": search,
    "pytorch-metric-learning (no Recall@K)": library,
}


def status(key: str) -> float:
    """Memory of this process in MB: VmRSS now, VmHWM at its peak."""
    return int(re.search(rf"{key}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def peak_memory(method: str, size: str) -> float:
    """MB that a method needs beyond the embeddings and the imported libraries."""
    METHODS[method](embeddings("tiny"))  # imports, thread pools
    case = embeddings(size)
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    METHODS[method](case)
    return status("VmHWM") - before


def measure(size: str, methods: list[str], repeats: int) -> list[dict]:
    """One row a method."""
    case, seconds, results = embeddings(size), {m: [] for m in methods}, {}
    for _ in range(repeats):
        for method in methods:
            start = time.process_time()
            results[method] = METHODS[method](case)
            seconds[method].append(time.process_time() - start)
    if "faiss IndexFlatIP" in results:
        results["faiss IndexFlatIP"] = faiss_recall(case, results["faiss IndexFlatIP"])
    rows = []
    for method in methods:
        command = [sys.executable, __file__, "--memory", method, "--sizes", size]
        memory = float(subprocess.run(command, check=True, capture_output=True).stdout)
        ratios = {
            f"time / {other}": round(
                statistics.median(
                    a / b for a, b in zip(seconds[method], seconds[other], strict=True)
                ),
                3,
            )
            for other in (methods[0], "faiss IndexFlatIP")
            if other in methods
        }
        found = results[method] or {}
        rows.append(
            {
                "size": size,
                "method": method,
                "seconds": round(statistics.median(seconds[method]), 2),
                **ratios,
                "extra MB": round(memory),
                "Recall@1": found.get("recall_at_1", found.get("precision_at_1")),
                f"Recall@{case['k'][-1]}": found.get(f"recall_at_{case['k'][-1]}"),
            }
        )
    return rows


def main() -> None:
    """Print a table for each size."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["cub", "inshop", "sop"])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument("--memory", choices=METHODS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    threadpool_limits(1)
    torch.set_num_threads(1)
    if options.memory:
        print(peak_memory(options.memory, options.sizes[0]))
        return
    methods = [m for m in options.methods if faiss or not m.startswith("faiss")]
    rows = []
    for size in options.sizes:
        rows += measure(size, methods, options.repeats)
        columns = list(rows[-1])
        print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
        for row in rows[-len(methods) :]:
            print("| " + " | ".join("" if v is None else str(v) for v in row.values()) + " |")
        print(flush=True)
        if options.json:
            options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
