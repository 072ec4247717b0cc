"""Emoji: retrieve an emoji across the drawings of nine vendors, in colour.

A class is an emoji, its images are the vendors' drawings; classes are disjoint. The drawings are
openly licensed icon sets of the npm registry (`credits` names licence and author of each), fetched
by `npm pack` at pinned versions, matched by code point or by name, and rasterised once.

Emoji that differ by skin tone alone, and families and couples, are left out; a sequence for a man
or a woman counts as the one for a person; an emoji needs MIN_VENDORS drawings.
"""

import io
import json
import os
import re
import shutil
import subprocess
import tarfile
import unicodedata
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dml.data.files import each
from dml.data.split import Sets, Split

VENDORS = {
    "noto": "1.2.9",
    "noto-v1": "1.2.5",
    "twemoji": "1.2.5",
    "openmoji": "1.2.29",
    "fluent-emoji": "1.2.7",
    "emojione": "1.2.3",
    "emojione-v1": "1.2.3",
    "fxemoji": "1.2.2",
    "streamline-emojis": "1.2.4",
}
# a near copy of fluent-emoji, whose drawings are not used; it says which code point has which name
INDEX_ONLY = {"fluent-emoji-flat": "1.2.6"}
INDICES = ("noto", "twemoji", "openmoji", "fluent-emoji-flat")  # the sets with code points
MIN_VENDORS = 5
WRONG = {("streamline-emojis", "turkey")}  # the country's flag, by the name of the bird
HOURS = [
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
]
SKIN_TONES = {f"1f3f{digit}" for digit in "bcdef"}
PERSONS = {"1f466", "1f467", "1f468", "1f469", "1f9d1", "1f9d2"}  # boy, girl, man, woman, ...


def read(root: Path, size: int = 64, seed: int = 0, split: str = "random") -> Sets:
    """Read the emoji below `root`/emoji, rasterised there if they are not yet at this size.

    Args:
        root: folder of the data sets.
        size: side of the square images in pixels.
        seed: of the random halves.
        split: "random" halves of the classes, or "codepoint", the first half in Unicode's order
            for training, which is harder: newer emoji and most people are in the second.

    Returns:
        Sets of uint8 images (n, 3, size, size) on white; a class's vendors in the order of VENDORS.

    Raises:
        FileNotFoundError: a package that has not been fetched.
        ValueError: an unknown split.
    """
    if split not in ("random", "codepoint"):
        raise ValueError(f"emoji: split={split!r} is neither 'random' nor 'codepoint'")
    file = root / "emoji" / f"emoji-{size}.npz"
    if not file.is_file():
        _rasterise(root, file, size)
    with np.load(file) as stored:
        whole = Split(
            torch.from_numpy(stored["images"]), stored["labels"], stored["names"].tolist()
        )
    order = np.arange(len(whole.classes))
    if split == "random":
        order = np.random.default_rng(seed).permutation(order)
    half = (len(order) + 1) // 2
    return Sets(whole.of_classes(order[:half]), whole.of_classes(order[half:]))


def download(root: Path) -> None:
    """Fetch the packages below `root`/emoji that are not there, by npm, which checks them.

    Raises:
        OSError: npm is not installed, or does not get a package.
    """
    if shutil.which("npm") is None:
        raise OSError(
            "emoji are fetched by npm, which is not installed here (it is part of Node.js)"
        )
    for name, version in {**VENDORS, **INDEX_ONLY}.items():
        package = _package(root, name)
        if package.is_file():
            continue
        package.parent.mkdir(parents=True, exist_ok=True)
        wanted = f"@iconify-json/{name}@{version}"
        command = ["npm", "pack", "--silent", wanted, "--pack-destination", str(package.parent)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode or not package.is_file():
            raise OSError(f"npm does not get {wanted}: {done.stderr.strip() or done.returncode}")


def credits(root: Path) -> list[dict[str, str]]:
    """Vendor, author, licence and link of each set, to be shown where its images are.

    Raises:
        FileNotFoundError: a package that has not been fetched.
    """
    infos = {name: _json(root, name, "info") for name in VENDORS}
    return [
        {
            "vendor": info["name"],
            "author": info["author"]["name"],
            "licence": info["license"]["spdx"],
            "link": info["author"]["url"],
        }
        for info in infos.values()
    ]


def match(root: Path) -> dict[str, dict[str, str]]:
    """Which icon of which vendor draws which emoji: code points -> vendor -> icon.

    Raises:
        FileNotFoundError: a package that has not been fetched.
    """
    keys_of, index = {}, {}
    for name in INDICES:
        keys_of[name] = {}
        for key, icon in _json(root, name, "chars").items():
            key = "-".join(part for part in key.split("-") if part not in ("fe0f", "fe0e"))
            keys_of[name].setdefault(icon, key)
            index.setdefault(_normalise(icon), key)
        for alias, parent in _json(root, name, "icons").get("aliases", {}).items():
            if parent["parent"] in keys_of[name] and not parent.keys() - {"parent"}:
                index.setdefault(_normalise(alias), keys_of[name][parent["parent"]])
    for key in sorted(set(index.values())):
        if "-" not in key:
            index.setdefault(_normalise(unicodedata.name(chr(int(key, 16)), key)), key)
    keys_of["fluent-emoji"] = keys_of.pop("fluent-emoji-flat")
    found: dict[str, dict[str, str]] = {}
    for vendor in VENDORS:
        exact, folded = {}, {}
        for icon, properties in _json(root, vendor, "icons")["icons"].items():
            if properties.get("hidden") or (vendor, icon) in WRONG:
                continue
            key = keys_of[vendor].get(icon) if vendor in keys_of else _by_name(icon, index)
            person = _fold(key) if key else None
            if person:
                (exact if person == key else folded).setdefault(person, icon)
        for key, icon in {**folded, **exact}.items():
            found.setdefault(key, {})[vendor] = icon
    enough = [key for key, icons in found.items() if len(icons) >= MIN_VENDORS]
    enough.sort(key=lambda key: [int(part, 16) for part in key.split("-")])
    return {key: found[key] for key in enough}


def _fold(key: str) -> str | None:
    """The emoji's key with a person for a man or a woman; None for one that is left out."""
    parts = key.split("-")
    private = any(0xE000 <= int(p, 16) <= 0xF8FF or int(p, 16) >= 0xF0000 for p in parts)
    joined = "200d" in parts
    if private or SKIN_TONES & set(parts) or (joined and sum(p in PERSONS for p in parts) > 1):
        return None
    if not joined:
        return key
    if parts[-2:] in (["200d", "2640"], ["200d", "2642"]):
        return "-".join(parts[:-2])
    if parts[0] in ("1f468", "1f469"):
        return "-".join(["1f9d1", *parts[1:]])
    return key


def _by_name(icon: str, index: dict[str, str]) -> str | None:
    """An icon's key by its name, or by its name as other vendors write it."""
    name = re.sub(r"-\d$", "", icon)  # streamline numbers its variants
    plain = re.sub(r"^flag-(for-)?(flag-)?", "", name)
    spoken = _normalise(name)
    hour = re.fullmatch(r"clock(\d+)(oclock|thirty)", spoken)  # fxemoji has digits for words
    for candidate in (
        _normalise(icon),
        spoken,
        f"flag{_normalise(plain)}" if plain != name else spoken,
        re.sub(r"^(.+?)flag$", r"flag\1", spoken),
        spoken.removesuffix("icon"),
        HOURS[int(hour[1]) - 1] + hour[2] if hour else spoken,
    ):
        if candidate in index:
            return index[candidate]
    return None


def _normalise(name: str) -> str:
    plain = unicodedata.normalize("NFKD", name).lower()
    return re.sub("[^a-z0-9]", "", plain)


def _rasterise(root: Path, file: Path, size: int) -> None:
    from resvg_py import svg_to_bytes  # heavy, and only this once

    icons = {vendor: _json(root, vendor, "icons") for vendor in VENDORS}
    classes = match(root)
    drawings = [
        (label, vendor, by_vendor[vendor])
        for label, by_vendor in enumerate(classes.values())
        for vendor in VENDORS
        if vendor in by_vendor
    ]

    def draw(drawing: tuple[int, str, str]) -> np.ndarray:
        _, vendor, name = drawing
        icon = {**icons[vendor], **icons[vendor]["icons"][name]}
        box = f"{icon.get('left', 0)} {icon.get('top', 0)} {icon['width']} {icon['height']}"
        svg = (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{box}" width="{size}" height="{size}">{icon["body"]}</svg>'
        )
        png = svg_to_bytes(svg_string=svg, background="#ffffff", skip_system_fonts=True)
        return np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGB"))

    images = np.stack(list(each(draw, drawings, "rasterising emoji"))).transpose(0, 3, 1, 2)
    partial = file.with_name(f"{file.stem}.partial{os.getpid()}.npz")
    np.savez(
        partial,
        images=np.ascontiguousarray(images),
        labels=np.array([label for label, *_ in drawings]),
        names=np.array([_name(key) for key in classes]),
    )
    partial.replace(file)  # whole or not at all


def _name(key: str) -> str:
    characters = [chr(int(part, 16)) for part in key.split("-") if part != "200d"]
    return " + ".join(unicodedata.name(c, f"U+{ord(c):X}") for c in characters)


def _package(root: Path, name: str) -> Path:
    version = {**VENDORS, **INDEX_ONLY}[name]
    return root / "emoji" / "packages" / f"iconify-json-{name}-{version}.tgz"


def _json(root: Path, name: str, part: str) -> dict:
    package = _package(root, name)
    if not package.is_file():
        raise FileNotFoundError(f"{package} is missing")
    with tarfile.open(package) as archive:
        return json.load(archive.extractfile(f"package/{part}.json"))
