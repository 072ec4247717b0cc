"""Folder: anyone's own images, one folder a class: train/<class>/*, test/<class>/*.

ProxyGML and MbDML take their data sets in this layout too.
"""

from pathlib import Path

from PIL import Image

from dml.data import files
from dml.data.split import Sets, Split

IGNORED = {"thumbs.db", "desktop.ini"}


def read(root: Path, path: str | None = None, size: int | None = 64) -> Sets:
    """The images below `root`/folder, or below `path`.

    Args:
        root: folder of the data sets.
        path: folder that has train/ and test/; None is `root`/folder.
        size: side of the square to which images are resized and cut, held in memory; None leaves
            them in their files, for transforms that cut crops of a network's size.

    Returns:
        Sets of RGB images; classes are the folders' names in order.

    Raises:
        FileNotFoundError: no train/ or test/.
        ValueError: a class folder without images, a file that is not an image, a class with one
            image in test, which no search among themselves can find.
    """
    base = Path(root) / "folder" if path is None else Path(path)
    query = _split(base / "test", size)
    lonely = (query.labels.bincount() == 1).nonzero().flatten().tolist()
    if lonely:
        name = query.classes[lonely[0]]
        raise ValueError(f"{base / 'test' / name} has one image: a search needs two of a class")
    return Sets(_split(base / "train", size), query)


def _split(base: Path, size: int | None) -> Split:
    if not base.is_dir():
        raise FileNotFoundError(f"{base} is missing: images belong in {base}/<class>/")
    folders = sorted(f for f in base.iterdir() if f.is_dir() and not f.name.startswith("."))
    if not folders:
        raise ValueError(f"{base} has no class folder: images belong in {base}/<class>/")
    paths, labels = [], []
    for label, folder in enumerate(folders):
        images = sorted(f for f in folder.rglob("*") if f.is_file() and not _ignored(f))
        if not images:
            raise ValueError(f"{folder} has no image: remove it, or put images in it")
        paths += images
        labels += [label] * len(images)
    known = Image.registered_extensions()
    for path in paths:
        if path.suffix.lower() not in known:
            raise ValueError(f"{path} is not an image: images end in .jpg, .png and the like")
    return Split(files.read(paths, size), labels, [folder.name for folder in folders])


def _ignored(file: Path) -> bool:
    """What operating systems leave behind: hidden files (._photo.jpg too) and their indices."""
    return file.name.startswith(".") or file.name.lower() in IGNORED
