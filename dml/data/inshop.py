"""In-Shop Clothes (DeepFashion): query images are searched in a gallery of other photographs.

Layout: Inshop_Clothes/Eval/list_eval_partition.txt and Inshop_Clothes/Img/ with the content of
img.zip (256 pixels; img_highres.zip has other pixels and is not the benchmark).
"""

from pathlib import Path

import numpy as np

from dml.data import files, lists
from dml.data.split import Sets, Split


def read(root: Path, size: int | None = None) -> Sets:
    """Read In-Shop below `root`. Query and gallery count their classes alike.

    Args:
        root: folder that has Inshop_Clothes/.
        size: None leaves images in their files; else as in `dml.data.files.decode`, in memory.

    Raises:
        FileNotFoundError: the list or an image that is missing.
        ValueError: a line that cannot be read, an unknown part, a product that is in the query or
            the gallery alone.
    """
    base = root / "Inshop_Clothes"
    path = base / "Eval" / "list_eval_partition.txt"
    rows = [[*row[0].rsplit(maxsplit=2)] for row in lists.rows(path, 1, header=2)]
    for row in rows:
        if len(row) != 3 or row[2] not in ("train", "query", "gallery"):
            raise ValueError(
                f"{path}: a line must be an image, a product and train, query or gallery, "
                f"not {' '.join(row)!r}"
            )
    # img.zip's own folder img/ is inside Img/, or its content is
    prefix = "" if (base / "Img" / "img").is_dir() else "img/"
    splits = {}
    for part in ("train", "query", "gallery"):
        mine = [row for row in rows if row[2] == part]
        paths = [base / "Img" / image.removeprefix(prefix) for image, *_ in mine]
        products, labels = np.unique([row[1] for row in mine], return_inverse=True)
        splits[part] = Split(files.read(paths, size), labels, products.tolist())
    alone = set(splits["query"].classes) ^ set(splits["gallery"].classes)
    if alone:
        raise ValueError(
            f"{path}: {min(alone)} is in the query or the gallery alone, {len(alone)} products are"
        )
    return Sets(**splits)
