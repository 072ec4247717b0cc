"""Stanford Online Products: 120,053 photographs of 22,634 products.

Layout: Stanford_Online_Products/Ebay_train.txt, Ebay_test.txt, bicycle_final/... and the other
eleven folders. The test products are searched among themselves.
"""

from pathlib import Path

from dml.data import lists
from dml.data.split import Sets


def read(root: Path, size: int | None = None) -> Sets:
    """Read Stanford Online Products below `root`.

    Args:
        root: folder that has Stanford_Online_Products/.
        size: None leaves images in their files; else as in `dml.data.files.decode`, in memory.

    Raises:
        FileNotFoundError: a list or an image that is missing.
        ValueError: a line that cannot be read.
    """
    base = root / "Stanford_Online_Products"
    splits = []
    for part in ("train", "test"):
        path = base / f"Ebay_{part}.txt"
        rows = lists.rows(path, 4, header=1)  # image_id class_id super_class_id path
        ids = lists.integers(path, [row[1] for row in rows])
        names = {
            int(i): f"{image.split('_final')[0]} {i}"
            for i, (*_, image) in zip(ids, rows, strict=True)
        }
        splits.append(lists.by_class([base / row[3] for row in rows], ids, names, size))
    return Sets(*splits)
