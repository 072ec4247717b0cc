"""CUB-200-2011: birds. Classes 1 to 100 train, 101 to 200 are searched among themselves.

Layout: CUB_200_2011/images.txt, image_class_labels.txt, images/001.Black_footed_Albatross/...
"""

from pathlib import Path

from dml.data import lists
from dml.data.split import Sets


def read(root: Path, size: int | None = None) -> Sets:
    """Read CUB below `root`.

    Args:
        root: folder that has CUB_200_2011/.
        size: None leaves images in their files; else as in `dml.data.files.decode`, in memory.

    Raises:
        FileNotFoundError: a list or an image that is missing.
        ValueError: a line that cannot be read, an image without a class.
    """
    base = root / "CUB_200_2011"
    images = lists.rows(base / "images.txt", 2)
    label_of = dict(lists.rows(base / "image_class_labels.txt", 2))
    missing = [path for number, path in images if number not in label_of]
    if missing:
        raise ValueError(f"{base / 'image_class_labels.txt'} has no class for {missing[0]}")
    ids = lists.integers(base / "image_class_labels.txt", [label_of[n] for n, _ in images])
    names = {
        int(i): path.split("/")[0].partition(".")[2]
        for i, (_, path) in zip(ids, images, strict=True)
    }
    paths = [base / "images" / path for _, path in images]
    return Sets(*lists.halves(paths, ids, names, last=100, size=size))
