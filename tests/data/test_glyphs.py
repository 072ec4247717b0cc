import numpy as np
import pytest
import torch

from dml import data
from dml.data import glyphs


def pixels_recall_at_1(split, queries=1500):
    """Of some of the images, searched in all."""
    x = torch.nn.functional.normalize(split.images.flatten(1).float(), dim=1)
    chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:queries]
    similarity = x[chosen] @ x.T
    similarity[torch.arange(len(chosen)), chosen] = -1
    return (split.labels[similarity.argmax(1)] == split.labels[chosen]).float().mean().item()


def test_the_whole_set_has_thousands_of_classes_each_in_many_typefaces():
    sets = data.load("glyphs")
    for split in (sets.train, sets.query):
        assert 1200 < len(split.classes) < 2000
        assert 14_000 < len(split) < 24_000
        assert split.labels.bincount().min() >= glyphs.MIN_TYPEFACES
        assert split.labels.bincount().max() <= len(glyphs.TYPEFACES)
        assert split.images.shape[1:] == (1, 32, 32) and split.images.dtype == torch.uint8
    assert sets.gallery is None


def test_classes_of_train_and_test_are_disjoint_random_halves():
    sets = data.load("glyphs")
    train, query = set(sets.train.classes), set(sets.query.classes)
    assert not train & query and abs(len(train) - len(query)) <= 1
    assert {"LATIN CAPITAL LETTER A", "LATIN SMALL LETTER B"} <= train | query
    assert train != set(data.load("glyphs", seed=1).train.classes)


def test_characters_whose_drawings_coincide_are_kept_once():
    names = {*data.load("glyphs").train.classes, *data.load("glyphs").query.classes}
    assert "LATIN CAPITAL LETTER A" in names
    assert not names & {"GREEK CAPITAL LETTER ALPHA", "CYRILLIC CAPITAL LETTER A"}
    drawings, codes = glyphs.draw(32)
    owner = {}
    for drawing, code in zip(drawings, codes, strict=True):
        assert owner.setdefault(drawing.tobytes(), code) == code


def test_a_smaller_set_is_part_of_the_whole_and_its_images_are_the_same():
    whole, part = data.load("glyphs"), data.load("glyphs", classes=40)
    assert len(part.train.classes) == len(part.query.classes) == 20
    for small, large in ((part.train, whole.train), (part.query, whole.query)):
        assert set(small.classes) <= set(large.classes)
        name = small.classes[7]
        mine = small.images[small.labels == 7]
        theirs = large.images[large.labels == large.classes.index(name)]
        assert torch.equal(mine, theirs)


def test_equal_seeds_draw_equal_images_and_others_do_not():
    first = data.load("glyphs", classes=20).query.images
    glyphs._all.cache_clear()
    assert torch.equal(first, data.load("glyphs", classes=20).query.images)
    drawings = torch.randint(256, (5, 64, 64), dtype=torch.uint8)
    images = [
        glyphs.distort(drawings, 32, 1.0, 0.15, torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    ]
    assert torch.equal(images[0], images[1]) and not torch.equal(images[0], images[2])


def test_without_distortion_and_noise_an_image_is_the_upright_drawing():
    drawings = np.random.default_rng(0).integers(256, size=(3, 64, 64), dtype=np.uint8)
    images = glyphs.distort(torch.from_numpy(drawings), 32, 0.0, 0.0, torch.Generator())
    halved = drawings.reshape(-1, 32, 2, 32, 2).mean((2, 4))
    assert np.abs(halved - images[:, 0].numpy()).max() <= 0.51


def test_distortion_and_noise_each_make_pixels_fail():
    drawings, codes = (torch.from_numpy(array[:3000]) for array in glyphs.draw(32))
    clean, bent, noisy = (
        pixels_recall_at_1(
            data.Split(
                glyphs.distort(drawings, 32, distortion, noise, torch.Generator()),
                codes.unique(return_inverse=True)[1],
                [chr(code) for code in codes.unique()],
            )
        )
        for distortion, noise in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0))
    )
    assert bent < clean - 0.2 and noisy < clean - 0.1


def test_raw_pixels_find_less_than_a_third_on_the_whole_test_set():
    assert pixels_recall_at_1(data.load("glyphs").query) < 0.35


@pytest.mark.parametrize(
    ("options", "culprit"),
    [
        ({"classes": 3}, "classes=3"),
        ({"classes": 10**6}, "classes=1000000"),
        ({"distortion": -1}, "distortion=-1"),
        ({"noise": -0.1}, "noise=-0.1"),
        ({"size": 2}, "size=2"),
    ],
)
def test_an_option_out_of_range_is_named(options, culprit):
    with pytest.raises(ValueError, match=culprit):
        data.load("glyphs", **options)


def test_more_copies_are_more_images_of_the_same_drawings_the_first_as_before():
    one, three = (data.load("glyphs", classes=20, copies=copies).train for copies in (1, 3))
    assert three.classes == one.classes and len(three) == 3 * len(one)
    first, second = three.images[: len(one)], three.images[len(one) : 2 * len(one)]
    assert torch.equal(first, one.images) and torch.equal(three.labels, one.labels.repeat(3))
    assert not torch.equal(first, second)
    with pytest.raises(ValueError, match="copies=0"):
        data.load("glyphs", copies=0)
