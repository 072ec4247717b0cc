"""Emoji from packages in npm's layout, made here: a square of its own colour for each drawing."""

import io
import json
import tarfile

import pytest
import torch

from dml import data
from dml.data import emoji

FACES = {f"1f6{i:02x}": f"face-{i}" for i in range(6)}  # code point -> name
COLOURS = dict(zip(emoji.VENDORS, range(20, 220, 22), strict=False))


def package(root, name, icons, chars=None, aliases=None):
    info = {
        "name": name.title(),
        "author": {"name": f"{name} people", "url": f"https://example.org/{name}"},
        "license": {"spdx": "MIT"},
    }
    icons = {"icons": icons, "aliases": aliases or {}, "width": 10, "height": 10}
    path = emoji._package(root, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for part, content in (("icons", icons), ("chars", chars or {}), ("info", info)):
            raw = json.dumps(content).encode()
            member = tarfile.TarInfo(f"package/{part}.json")
            member.size = len(raw)
            archive.addfile(member, io.BytesIO(raw))


def square(grey):
    return {"body": f'<path fill="rgb({grey},{grey},{grey})" d="M1 1h8v8h-8z"/>'}


@pytest.fixture
def root(tmp_path):
    for name in (*emoji.VENDORS, *emoji.INDEX_ONLY):
        icons = {icon: square(COLOURS.get(name, 0)) for icon in FACES.values()}
        package(tmp_path, name, icons, FACES if name in emoji.INDICES else None)
    return tmp_path


def test_a_class_is_an_emoji_and_its_images_are_the_vendors_drawings(root):
    sets = data.load("emoji", root, size=20)
    assert len(sets.train.classes) == len(sets.query.classes) == 3
    assert not set(sets.train.classes) & set(sets.query.classes)
    assert sets.train.labels.bincount().tolist() == [9] * 3
    assert sets.train.images.shape == (27, 3, 20, 20)
    assert "GRINNING FACE" in sets.train.classes + sets.query.classes
    of_one = sets.train.images[sets.train.labels == 1]
    assert of_one[:, 0, 10, 10].tolist() == list(COLOURS.values())
    assert (of_one[:, :, 0, 0] == 255).all()  # on white


def test_the_halves_follow_the_seed_or_the_code_points(root):
    halves = {tuple(data.load("emoji", root, size=8, seed=s).train.classes) for s in range(8)}
    assert len(halves) > 1
    by_order = data.load("emoji", root, size=8, split="codepoint")
    assert by_order.train.classes[0] == "GRINNING FACE"
    assert not set(by_order.train.classes) & set(by_order.query.classes)


def test_an_emoji_with_too_few_vendors_and_hidden_icons_are_left_out(root):
    for name in list(emoji.VENDORS)[: 9 - emoji.MIN_VENDORS + 1]:
        icons = {icon: square(0) for icon in FACES.values()}
        icons["face-0"]["hidden"] = True
        package(root, name, icons, FACES if name in emoji.INDICES else None)
    assert "1f600" not in emoji.match(root) and len(emoji.match(root)) == 5


@pytest.mark.parametrize(
    ("key", "folded"),
    [
        ("1f600", "1f600"),
        ("1f44d-1f3fb", None),  # a skin tone
        ("1f468-200d-1f469-200d-1f466", None),  # a family
        ("e50a", None),  # private
        ("1f3c3-200d-2640", "1f3c3"),  # a woman running
        ("1f469-200d-1f680", "1f9d1-200d-1f680"),  # a woman astronaut
        ("1f9d1-200d-1f680", "1f9d1-200d-1f680"),
        ("1f1e9-1f1ea", "1f1e9-1f1ea"),  # a flag
    ],
)
def test_sequences_fold_to_a_person_or_are_left_out(key, folded):
    assert emoji._fold(key) == folded


@pytest.mark.parametrize(
    ("icon", "name"),
    [
        ("flag-for-flag-italy", "flagitaly"),
        ("italyflag", "flagitaly"),
        ("baby-2", "baby"),
        ("Crème-Brûlée", "cremebrulee"),
        ("faxicon", "fax"),
        ("clock12thirty", "twelvethirty"),
    ],
)
def test_names_are_matched_as_the_vendors_write_them(icon, name):
    assert emoji._by_name(icon, {name: "key"}) == "key"
    assert emoji._by_name(icon, {"other": "key"}) is None


def test_it_is_drawn_once_for_each_size(root):
    data.load("emoji", root, size=8)
    file = root / "emoji" / "emoji-8.npz"
    before = file.stat().st_mtime_ns
    first = data.load("emoji", root, size=8).train.images
    assert file.stat().st_mtime_ns == before
    assert torch.equal(first, data.load("emoji", root, size=8).train.images)
    assert data.load("emoji", root, size=12).train.images.shape[-1] == 12


def test_every_vendor_is_credited(root):
    credits = emoji.credits(root)
    assert [c["vendor"] for c in credits] == [name.title() for name in emoji.VENDORS]
    assert credits[0] == {
        "vendor": "Noto",
        "author": "noto people",
        "licence": "MIT",
        "link": "https://example.org/noto",
    }


def test_a_missing_package_and_an_unknown_split_are_named(root, tmp_path):
    emoji._package(root, "fxemoji").unlink()
    with pytest.raises(FileNotFoundError, match=r"fxemoji-1\.2\.2\.tgz is missing.*To get emoji: "):
        data.load("emoji", root)
    with pytest.raises(ValueError, match="split='vendor' is neither 'random' nor 'codepoint'"):
        data.load("emoji", root, split="vendor")
