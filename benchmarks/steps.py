"""A whole training step, network included, with each space of Metrix beside the baseline's step.

    python benchmarks/steps.py [--backbone small] [--size 32] [--batches 32 100 256 512]
                               [--losses multi_similarity] [--rounds 5] [--out FILE]

With a GPU the step runs there, under bfloat16 autocast, and memory is what CUDA allocated. On a
CPU, `make bench` has glibc keep the memory that a step gives back: else a large batch spends much
of its time on pages that the system clears anew, and the time of the bare network grows faster
than its images.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from dml import cost, losses, mixup, model

SPACES = ("none", *model.SPACES)
CUDA = torch.cuda.is_available()


def make_step(backbone: str, name: str, space: str, images, labels):
    """One step of training, from images to updated weights; the loss decides nothing of its time.
    Also returns the numbers of mixed images, for the bound on input mixup."""
    torch.manual_seed(0)
    network = model.EmbeddingModel(backbone, 512, images.shape[1]).to(images.device).train()
    clean = losses.build(name, int(labels.max()) + 1, 512)
    # one positive of each anchor where images are mixed, or they would be four times as many
    positives = 1 if space == "input" else None
    generator = np.random.default_rng(0)
    metrix = mixup.Metrix(
        clean, "positive-negative", positives=positives, generator=generator
    )  # the dearest kind: none of its mixtures has a proxy for a parent
    metrix.to(images.device)
    optimizer = torch.optim.Adam([*network.parameters(), *metrix.parameters()], lr=1e-4)
    made: list[int] = []

    def step():
        with torch.autocast(images.device.type, torch.bfloat16, CUDA):
            inputs = network.prepare(images)
            maps = network.features(inputs)
            embeddings = network.head(network.pool(maps))
            if space == "none":
                loss = clean(embeddings, labels)
            else:
                mixer = network.mixer(space, inputs, maps)

                def mix(i, j, lam):
                    made.append(len(i))
                    return mixer(i, j, lam)

                loss = metrix(embeddings, labels, mix=mix if mixer else None)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step, made


def measure(backbone: str, name: str, size: int, batch: int, rounds: int) -> list[dict]:
    """A row a space: its step's time and peak memory beside the baseline's."""
    channels = 1 if backbone == "small" else 3
    device = "cuda" if CUDA else "cpu"
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch, channels, size, size), generator=generator)
    images = images.to(torch.uint8).to(device)
    labels = (torch.arange(batch) // 5).to(device)
    steps = {space: make_step(backbone, name, space, images, labels) for space in SPACES}
    calls = {space: step for space, (step, _) in steps.items()}
    ratio = cost.ratios(cost.seconds(calls, rounds, warm_up=1), "none")
    mixed = {space: np.median(made[-rounds:] or 0) for space, (_, made) in steps.items()}
    memory = {space: peak(call) for space, call in calls.items()}
    return [
        {
            "backbone": backbone,
            "loss": name,
            "batch": batch,
            "space": space,
            "time": ratio[space],
            "memory": memory[space] / memory["none"],
            "mixed images / batch": mixed[space] / batch,
            "device": torch.cuda.get_device_name() if CUDA else "CPU, 1 thread",
        }
        for space in SPACES[1:]
    ]


def peak(call) -> int:
    """Peak memory of a call in bytes: of CUDA's allocator, or of the tensors alive."""
    if not CUDA:
        return cost.peak_memory(call)
    torch.cuda.reset_peak_memory_stats()
    call()
    return torch.cuda.max_memory_allocated()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="small")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 100, 256, 512])
    parser.add_argument("--losses", nargs="+", default=list(losses.LOSSES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in given.losses:
        for batch in given.batches:
            rows += measure(given.backbone, name, given.size, batch, given.rounds)
    cost.report(rows, given.out)


if __name__ == "__main__":
    main()
