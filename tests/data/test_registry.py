import numpy as np
import pytest
import torch

from dml import data


def test_an_unknown_data_set_is_named_beside_those_there_are():
    with pytest.raises(ValueError, match=r"'glyfs'.*glyphs, digits"):
        data.load("glyfs")


def test_an_unknown_option_is_named_beside_the_valid_ones():
    with pytest.raises(ValueError, match=r"glyphs has no option klasses.*classes, seed"):
        data.load("glyphs", klasses=10)
    with pytest.raises(ValueError, match=r"digits has no option seed.*none"):
        data.load("digits", seed=1)


@pytest.mark.parametrize("name", ["digits", "glyphs"])
def test_a_split_is_images_with_contiguous_labels_and_class_names(name):
    sets = data.load(name)
    for split in (sets.train, sets.query):
        image, label = split[3]
        assert isinstance(label, int) and label == split.labels[3]
        assert image.dtype == torch.uint8 and image.ndim == 3
        assert torch.equal(split.labels.unique(), torch.arange(len(split.classes)))
        assert len(split) == len(split.images) == len(split.labels)


def test_digits_train_on_0_to_4_and_search_5_to_9():
    sets = data.load("digits")
    assert sets.train.classes == list("01234") and sets.query.classes == list("56789")
    assert len(sets.train) + len(sets.query) == 1797
    assert sets.train.images.max() == 255


def test_verify_counts_what_is_there():
    counts = data.verify("digits")
    assert counts == {
        "train": {"images": 901, "classes": 5},
        "query": {"images": 896, "classes": 5},
    }


def test_taking_images_makes_their_labels_contiguous():
    images = torch.arange(6, dtype=torch.uint8).reshape(6, 1, 1, 1)
    split = data.Split(images, [0, 0, 1, 1, 2, 2], "abc")
    taken = split.take([5, 0])
    assert taken.classes == ["a", "c"] and taken.labels.tolist() == [1, 0]
    assert taken.images.flatten().tolist() == [5, 0]
    assert split.of_classes([2, 0]).images.flatten().tolist() == [0, 1, 4, 5]


def test_a_split_refuses_labels_with_a_gap_or_of_another_length():
    images = torch.zeros(4, 1, 2, 2, dtype=torch.uint8)
    with pytest.raises(ValueError, match="class 'b' has no image"):
        data.Split(images, [0, 0, 2, 2], "abc")
    with pytest.raises(ValueError, match="4 images but 3 labels"):
        data.Split(images, [0, 0, 1], "ab")
    with pytest.raises(ValueError, match="labels must be 0 to 1"):
        data.Split(images, np.array([0, 1, 2, 2]), "ab")
