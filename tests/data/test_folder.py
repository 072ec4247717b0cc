import numpy as np
import pytest
import torch
from PIL import Image

from dml import data


def save(path, mode="RGB", size=(20, 30), value=128, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode != "RGB" else (value, 0, 255 - value)).save(path, **options)


@pytest.fixture
def tree(tmp_path):
    for part, names in (("train", ("ant", "Bee 2")), ("test", ("ant", "cat"))):
        for name in names:
            for i in range(3):
                save(tmp_path / part / name / f"IMG {i}.JPG")
    return tmp_path


def load(tree, **options):
    return data.load("folder", path=str(tree), **options)


def test_classes_are_the_folders_in_order(tree):
    sets = load(tree)
    assert sets.train.classes == ["Bee 2", "ant"] and sets.query.classes == ["ant", "cat"]
    assert sets.train.labels.tolist() == [0, 0, 0, 1, 1, 1] and sets.gallery is None
    assert sets.train.images.shape == (6, 3, 64, 64)


def test_it_is_below_the_root_unless_a_path_is_given(tree, tmp_path):
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets" / "folder").symlink_to(tree)
    assert len(data.load("folder", root=tmp_path / "sets").train) == 6


def test_without_a_size_images_stay_in_their_files(tree):
    sets = load(tree, size=None)
    image, label = sets.query[5]
    assert image.shape == (3, 30, 20) and label == 1


def test_what_operating_systems_leave_behind_is_ignored(tree):
    for junk in ("._IMG 0.JPG", ".DS_Store", "Thumbs.db"):
        (tree / "train" / "ant" / junk).write_bytes(b"junk")
    (tree / "train" / ".cache").mkdir()
    assert len(load(tree).train) == 6


def test_grey_palette_cmyk_alpha_and_16_bit_images_become_8_bit_rgb(tree):
    folder = tree / "test" / "cat"
    save(folder / "grey.png", "L", value=100)
    save(folder / "palette.gif", "P", value=7)
    save(folder / "cmyk.jpg", "CMYK", value=(0, 0, 0, 0))
    save(folder / "alpha.png", "RGBA", value=(255, 0, 0, 0))
    deep = np.full((30, 20), 100 * 257, dtype=np.uint16)
    Image.fromarray(deep).save(folder / "deep.png")
    sets = load(tree, size=16)
    names = sorted(f.name for f in folder.iterdir())
    images = dict(zip(names, sets.query.images[sets.query.labels == 1], strict=True))
    assert (images["grey.png"] == 100).all()
    assert (images["deep.png"] == 100).all()
    assert (images["cmyk.jpg"] >= 254).all()
    assert (images["alpha.png"] == 255).all()  # transparent is white


def test_the_rotation_that_a_camera_noted_is_applied(tree):
    upright = np.zeros((20, 40, 3), dtype=np.uint8)
    upright[:, :20] = 255  # bright on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate a quarter clockwise to see it upright
    turned = Image.fromarray(upright).transpose(Image.Transpose.ROTATE_90)
    turned.save(tree / "test" / "cat" / "turned.png", exif=exif)
    image, _ = load(tree, size=None).query[-1]
    assert torch.equal(image.permute(1, 2, 0), torch.from_numpy(upright))


def test_resizing_fills_the_square_and_cuts_the_longer_side(tree):
    wide = np.zeros((32, 96, 3), dtype=np.uint8)
    wide[:, 32:64] = 255
    Image.fromarray(wide).save(tree / "test" / "cat" / "wide.png")
    assert (load(tree, size=32).query[-1][0] == 255).all()


def test_verify_reads_every_image_and_counts(tree):
    assert data.verify("folder", path=str(tree)) == {
        "train": {"images": 6, "classes": 2},
        "query": {"images": 6, "classes": 2},
    }


@pytest.mark.parametrize("size", [None, 32])
def test_a_truncated_file_is_named(tree, size):
    file = tree / "test" / "cat" / "IMG 1.JPG"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"IMG 1\.JPG is not an image that can be read"):
        data.verify("folder", path=str(tree), size=size)


def test_a_file_that_is_no_image_inside_is_named(tree):
    (tree / "test" / "cat" / "IMG 1.JPG").write_text("hello")
    with pytest.raises(ValueError, match=r"IMG 1\.JPG is not an image that can be read"):
        load(tree)


def test_a_file_that_is_not_an_image_by_name_is_named(tree):
    (tree / "train" / "ant" / "notes.txt").write_text("hello")
    with pytest.raises(ValueError, match=r"notes\.txt is not an image"):
        load(tree, size=None)


def test_an_empty_class_folder_is_named(tree):
    (tree / "train" / "dog").mkdir()
    with pytest.raises(ValueError, match="dog has no image"):
        load(tree)


def test_a_test_class_with_one_image_is_named(tree):
    save(tree / "test" / "dog" / "only.png")
    with pytest.raises(ValueError, match="dog has one image"):
        load(tree)


def test_a_missing_part_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="test is missing"):
        load(tmp_path)
    (tmp_path / "test").mkdir()
    with pytest.raises(ValueError, match="test has no class folder"):
        load(tmp_path)
