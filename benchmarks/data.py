"""From JPEG files to batches: the papers' way, PIL and transforms in floats, beside ours in bytes,
from the files and from the memory-mapped cache. One core, photographs of 500 x 375 pixels.

    python benchmarks/data.py [--rounds 5] [--out FILE]
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torchvision import transforms as v1

from dml import cost, data

BATCH, SHAPE = 100, (500, 375)
NORMALISE = v1.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
PAPERS = {  # what the papers' code does to an image
    "training crop": v1.Compose(
        [v1.RandomResizedCrop(224), v1.RandomHorizontalFlip(), v1.ToTensor(), NORMALISE]
    ),
    "test crop": v1.Compose([v1.Resize(256), v1.CenterCrop(224), v1.ToTensor(), NORMALISE]),
}
OURS = {"training crop": data.transforms.random_crop(), "test crop": None}


def photographs(root: Path) -> None:
    """A `folder` data set: parts of two photographs, under noise that a JPEG has to keep."""
    rng = np.random.default_rng(0)
    photos = [Image.fromarray(image) for image in load_sample_images().images]
    for part in ("train", "test"):
        for i in range(BATCH):
            photo = photos[i % 2]
            width, height = (int(side * rng.uniform(0.5, 1)) for side in photo.size)
            left, top = (
                rng.integers(s - t + 1) for s, t in zip(photo.size, (width, height), strict=True)
            )
            cut = photo.crop((left, top, left + width, top + height)).resize(SHAPE)
            pixels = np.asarray(cut) + rng.normal(0, 4, (*SHAPE[::-1], 3))
            path = root / "folder" / part / f"{part}{i // 10}" / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)


def papers(paths, transform) -> torch.Tensor:
    """A batch as a DataLoader of the papers' code makes it."""
    return torch.stack([transform(Image.open(path).convert("RGB")) for path in paths])


def ours(split, transform) -> torch.Tensor:
    """A batch of `dml.data.loader`."""
    images, _ = next(iter(data.loader(split, BATCH, transform=transform)))
    return images


def measure(kind: str, rounds: int, root: Path) -> list[dict]:
    """One row a way to make the batch."""
    files, cached = (data.load("folder", root, size=None, cache=c).train for c in (None, 256))
    calls = {
        "PIL, floats": lambda: papers(files.images.paths, PAPERS[kind]),
        "files, bytes": lambda: ours(files, OURS[kind]),
        "cache, bytes": lambda: ours(cached, OURS[kind]),
    }
    seconds = cost.seconds(calls, rounds)
    speed = 1 / cost.ratios(seconds, "PIL, floats")
    return [
        {
            "images": kind,
            "path": name,
            "images/s / PIL, floats": speed[name],
            "images/s": BATCH / seconds[name].median(),
            "bytes / batch": call().nbytes,
        }
        for name, call in calls.items()
    ]


def main() -> None:
    """Measure, print and, with --out, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        photographs(Path(folder))
        rows = [row for kind in PAPERS for row in measure(kind, given.rounds, Path(folder))]
    cost.report(rows, given.out)


if __name__ == "__main__":
    main()
