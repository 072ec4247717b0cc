"""Cars196: cars by make, model and year. Classes 1 to 98 train, 99 to 196 are searched.

The source's own division into training and test images is of seen classes; here both are merged
and divided by class. Two layouts: cars196/cars_annos.mat with cars196/car_ims/000001.jpg ...; or
the archives in two parts, cars196/cars_train/, cars196/cars_test/, cars196/devkit/ with
cars_train_annos.mat and cars_meta.mat, and cars_test_annos_withlabels.mat there or beside it.
"""

from pathlib import Path

import numpy as np
from scipy.io import loadmat

from dml.data import lists
from dml.data.split import Sets


def read(root: Path, size: int | None = None) -> Sets:
    """Read Cars196 below `root`.

    Args:
        root: folder that has cars196/.
        size: None leaves images in their files; else as in `dml.data.files.decode`, in memory.

    Raises:
        FileNotFoundError: an annotation file or an image that is missing.
        ValueError: an annotation file that cannot be read.
    """
    base = root / "cars196"
    together = base / "cars_annos.mat"
    paths, ids, classes = _together(together) if together.is_file() else _in_parts(base)
    names = dict(enumerate(classes, 1))
    return Sets(*lists.halves(paths, ids, names, last=98, size=size))


def _together(path: Path) -> tuple[list[Path], np.ndarray, list[str]]:
    annotations = _table(path, "annotations")
    paths = [path.parent / name for name in _strings(annotations["relative_im_path"])]
    return paths, _integers(annotations["class"]), _strings(_table(path, "class_names"))


def _in_parts(base: Path) -> tuple[list[Path], np.ndarray, list[str]]:
    devkit = base / "devkit"
    if not devkit.is_dir():
        raise FileNotFoundError(
            f"neither {base / 'cars_annos.mat'} nor {devkit} is there: Cars196 is not here, or "
            "not whole"
        )
    labelled = "cars_test_annos_withlabels.mat"
    test = base / labelled if (base / labelled).is_file() else devkit / labelled
    paths, ids = [], []
    for path, folder in ((devkit / "cars_train_annos.mat", "cars_train"), (test, "cars_test")):
        annotations = _table(path, "annotations")
        if "class" not in annotations.dtype.names:
            raise ValueError(f"{path} has no classes: {labelled} is needed")
        paths += [base / folder / name for name in _strings(annotations["fname"])]
        ids.append(_integers(annotations["class"]))
    classes = _strings(_table(devkit / "cars_meta.mat", "class_names"))
    return paths, np.concatenate(ids), classes


def _table(path: Path, name: str) -> np.ndarray:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: Cars196 is not here, or not whole")
    try:
        return loadmat(path, squeeze_me=True)[name].reshape(-1)
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ValueError(f"{path} is not an annotation file of Cars196: {error}") from None


def _strings(column: np.ndarray) -> list[str]:
    return [str(entry) for entry in column]


def _integers(column: np.ndarray) -> np.ndarray:
    return column.astype(np.int64)
