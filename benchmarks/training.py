"""Training as a run does it, from cached images to updated weights, with the baseline and each
space of Metrix, beside a bare forward and backward of the same timm model on a batch that lies
ready. What a step takes longer when the loader feeds it is the time that it waits for images.

    python benchmarks/training.py [--backbone resnet50] [--size 224] [--batch 100] [--steps 10]
                                  [--workers 8] [--rounds 5] [--out FILE]

With a GPU the network runs there, in bfloat16; memory is what CUDA allocated. Without one, images
and batches are smaller unless said otherwise, one thread does everything, and memory is not
measured.
"""

import argparse
import os
from pathlib import Path

import timm
import torch
from tqdm import tqdm

from dml import cost, data, model, train

CUDA = torch.cuda.is_available()


def generated(images: int, size: int) -> data.Split:
    """Random bytes where the cache would have photographs, five of a class."""
    pixels = torch.empty(images, 3, size * 8 // 7, size * 8 // 7, dtype=torch.uint8)
    labels = torch.arange(images) // 5
    classes = [str(c) for c in range(int(labels[-1]) + 1)]
    return data.Split(pixels.random_(0, 256), labels, classes)


def bare(config: train.Config, images: torch.Tensor, device: torch.device, steps: int):
    """`steps` times forward and backward of the backbone alone, with its batch norm frozen."""
    backbone = timm.create_model(config.backbone, num_classes=0, global_pool="").to(
        device, memory_format=train.memory_format(config)
    )
    backbone.train()
    model.freeze_batch_norm(backbone)
    inputs = images.to(device).float() / 255 - 0.5
    inputs = inputs.contiguous(memory_format=train.memory_format(config))

    def run():
        for _ in range(steps):
            with torch.autocast(device.type, train.PRECISIONS[config.precision], CUDA):
                value = backbone.forward_features(inputs).float().mean()
            backbone.zero_grad(set_to_none=True)
            value.backward()

    return run


def training(config: train.Config, sets: data.Sets, device: torch.device, steps: int, crop: int):
    """A batch's images, and two calls of `steps` steps of `train.steps`: on that batch, which lies
    ready, and fed by the loader."""
    parts = train.build(config, sets, device)
    loader = data.loader(
        sets.train,
        config.batch_size,
        config.images_per_class,
        train=True,
        transform=data.transforms.random_crop(crop),
        workers=config.workers,
    )
    images, labels = next(iter(loader))
    ready = [(images.to(device), labels.to(device))] * steps

    def run(batches):
        with tqdm(disable=True) as bar:
            return list(train.steps(config, parts, batches, device, bar))

    return images, lambda: run(ready), lambda: run(loader)


def peak(call) -> float:
    """Peak megabytes of CUDA's allocator beyond what is there before; NaN on a CPU."""
    if not CUDA:
        return float("nan")
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def main() -> None:
    """Measure, print and, with --out, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--size", type=int, default=224 if CUDA else 112)
    parser.add_argument("--batch", type=int, default=100 if CUDA else 15)
    parser.add_argument("--steps", type=int, default=10 if CUDA else 2)
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() - 1) if CUDA else 0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if not CUDA:
        torch.set_num_threads(1)
    device = train.pick_device("auto")
    split = generated(given.batch * given.steps, given.size)
    calls = {}
    for mix in train.MIXES:
        config = train.Config(
            mix=mix,
            pairs=("positive-negative",),  # the dearest kind, at every step
            positives=1 if mix == "input" else None,  # or four times as many images are mixed
            backbone=given.backbone,
            frozen_bn=True,
            embedding_size=512,
            batch_size=given.batch,
            channels_last=True,
            precision="bfloat16" if CUDA else "float32",
            workers=given.workers,
        )
        sets = data.Sets(split, split)
        images, calls[mix], calls[f"{mix}, fed"] = training(
            config, sets, device, given.steps, given.size
        )
    calls["bare"] = bare(config, images, device, given.steps)
    memory = {name: peak(call) for name, call in calls.items()}
    seconds = cost.seconds(calls, given.rounds, warm_up=1)
    ratio = cost.ratios(seconds, "bare")
    rows = [
        {
            "backbone": given.backbone,
            "pixels": given.size,
            "batch": given.batch,
            "mix": mix,
            "images/s / bare": 1 / ratio[f"{mix}, fed"],
            "memory / bare": memory[mix] / memory["bare"],
            "peak MB": memory[mix],
            "waits for images": (1 - seconds[mix] / seconds[f"{mix}, fed"]).median(),
            "device": torch.cuda.get_device_name() if CUDA else "CPU, 1 thread",
        }
        for mix in train.MIXES
    ]
    cost.report(rows, given.out)


if __name__ == "__main__":
    main()
