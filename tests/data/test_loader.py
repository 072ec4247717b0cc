import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from dml import data
from dml.data.samplers import Batches


@pytest.fixture(scope="module")
def split():
    return data.load("glyphs", classes=60).train


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        for name in "ab":
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(4):
                pixels = rng.integers(256, size=(40 + i, 50, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / name / f"{i}.png")
    return data.load("folder", path=str(tmp_path), size=None).train


def drawn(loader, epochs=1):
    for epoch in range(epochs):
        loader.set_epoch(epoch)
        yield from ((images.clone(), labels.clone()) for images, labels in loader)


def same(first, second):
    pairs = list(zip(first, second, strict=True))
    return all(torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in pairs)


def test_in_order_every_image_comes_once():
    split = data.load("digits").query
    batches = list(data.loader(split, 100))
    assert [len(labels) for _, labels in batches] == [100] * 8 + [96]
    assert torch.equal(torch.cat([images for images, _ in batches]), split.images)
    assert torch.equal(torch.cat([labels for _, labels in batches]), split.labels)


def test_training_shuffles_and_drops_what_is_not_a_full_batch():
    split = data.load("digits").train
    loader = data.loader(split, 100, train=True)
    labels = torch.cat([labels for _, labels in loader])
    assert len(loader) == 9 and len(labels) == 900
    assert not torch.equal(labels, split.labels[:900])


def test_shuffled_indices_are_a_permutation():
    batches = [indices for indices, _ in Batches(np.zeros(20), 5)]
    assert sorted(np.concatenate(batches)) == list(range(20))


def test_a_batch_has_m_different_images_of_each_of_its_classes(split):
    for indices, _ in Batches(split.labels, 50, images_per_class=5):
        counts = split.labels[indices].bincount()
        assert set(counts.tolist()) <= {0, 5} and (counts == 5).sum() == 10
        assert len(set(indices.tolist())) == 50


def test_m_per_class_draws_every_class_and_image_equally_often():
    labels = np.repeat([0, 1, 2, 3], [5, 6, 7, 2])
    counts = np.zeros(20)
    batches = Batches(labels, 4, images_per_class=2)
    for epoch in range(4000):
        batches.set_epoch(epoch)
        for indices, _ in batches:
            np.add.at(counts, indices, 1)
    expected = 4000 * 5 / np.repeat([5, 6, 7, 2], [5, 6, 7, 2])  # a class is in half the batches
    assert np.abs(counts / expected - 1).max() < 0.06


def test_a_class_with_fewer_than_m_images_is_drawn_with_replacement():
    labels = np.array([0, 1, 1, 1, 1])
    for indices, _ in Batches(labels, 4, images_per_class=2):
        assert np.bincount(labels[indices]).tolist() == [2, 2]


@pytest.mark.parametrize("options", [{}, {"images_per_class": 5}])
@pytest.mark.parametrize("augment", ["none", "affine"])
def test_equal_seeds_and_epochs_give_equal_batches(split, options, augment):
    def make(seed=0):
        transform = data.transforms.AUGMENTATIONS[augment]
        return data.loader(split, 50, train=True, transform=transform, seed=seed, **options)

    assert same(drawn(make(), 2), drawn(make(), 2))
    assert not same(drawn(make()), drawn(make(seed=1)))
    resumed, other = make(), make()
    resumed.set_epoch(1)
    first = list(drawn(other, 2))
    assert same(resumed, first[len(resumed) :]) and not same(resumed, first[: len(resumed)])


def test_drawing_batches_leaves_the_global_generator_alone(split):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    list(data.loader(split, 50, train=True, transform=data.transforms.AUGMENTATIONS["affine"]))
    assert torch.equal(torch.rand(3), expected)


def test_files_are_augmented_alike_with_any_number_of_workers(files):
    alone, shared = (
        data.loader(files, 4, 2, train=True, transform=data.transforms.random_crop(32), workers=w)
        for w in (0, 2)
    )
    assert same(drawn(alone, 2), drawn(shared, 2))


def test_files_come_as_the_test_crop_unless_told_otherwise(files):
    images, labels = next(iter(data.loader(files, 8)))
    assert images.shape == (8, 3, 224, 224) and images.dtype == torch.uint8
    assert labels.tolist() == [0] * 4 + [1] * 4
    whole = v2.functional.resize(files[0][0], 256, antialias=True)
    assert torch.equal(images[0], v2.functional.center_crop(whole, 224))


def test_affine_moves_each_image_of_a_batch_in_its_own_way():
    images = torch.zeros(8, 1, 32, 32, dtype=torch.uint8)
    images[..., 12:20, 12:20] = 200
    moved = data.transforms.RandomAffine()(images)
    assert moved.dtype == torch.uint8 and moved.shape == images.shape
    assert len({image.numpy().tobytes() for image in moved}) == 8
    still = data.transforms.RandomAffine(degrees=0, scale=0, shift=0)(images)
    assert torch.equal(still, images)


def test_affine_shifts_by_at_most_its_share_of_the_side():
    images = torch.zeros(500, 1, 33, 33, dtype=torch.uint8)
    images[:, :, 16, 16] = 255
    moved = data.transforms.RandomAffine(degrees=0, scale=0, shift=0.25)(images).float()
    row = (moved.sum(3) * torch.arange(33)).sum(2) / moved.sum((2, 3))
    assert (row - 16).abs().max() < 0.25 * 33 + 0.5 and (row - 16).abs().max() > 6


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        ({"batch_size": 0}, "batch_size=0 must be positive"),
        ({"batch_size": 10**6, "train": True}, "batch_size=1000000 exceeds"),
        ({"batch_size": 50, "images_per_class": 7, "train": True}, "images_per_class=7"),
        ({"batch_size": 155, "images_per_class": 5, "train": True}, "needs 31 classes.*has 30"),
        ({"batch_size": 50, "images_per_class": 5}, "train=True"),
    ],
)
def test_sizes_that_do_not_fit_are_named(split, arguments, culprit):
    with pytest.raises(ValueError, match=culprit):
        data.loader(split, **arguments)


def test_a_batched_transform_refuses_files(files):
    with pytest.raises(ValueError, match="RandomAffine is for images in memory"):
        data.loader(files, 4, transform=data.transforms.RandomAffine())


def test_a_label_fraction_is_the_same_part_of_every_class():
    labels = torch.arange(5).repeat_interleave(torch.tensor([10, 20, 30, 40, 50]))
    labels = labels[torch.randperm(150, generator=torch.Generator().manual_seed(0))]
    kept = data.label_fraction(labels, 0.1)
    assert labels[kept].bincount().tolist() == [1, 2, 3, 4, 5]
    assert torch.equal(kept, kept.unique()) and kept.dtype == torch.int64
    assert torch.equal(kept, data.label_fraction(labels, 0.1))
    assert not torch.equal(kept, data.label_fraction(labels, 0.1, seed=1))
    assert torch.equal(data.label_fraction(labels, 1.0), torch.arange(150))


def test_a_label_fraction_draws_every_image_equally_often():
    labels = np.repeat([0, 1], [4, 8])
    counts = np.zeros(12)
    for seed in range(2000):
        counts[data.label_fraction(labels, 0.5, seed)] += 1
    assert np.abs(counts / 1000 - 1).max() < 0.1


def test_a_label_fraction_that_leaves_a_class_without_labels_is_refused():
    with pytest.raises(ValueError, match=r"fraction=0\.1 leaves class 1, of 4 images, unlabelled"):
        data.label_fraction(np.repeat([0, 1], [10, 4]), 0.1)
    for fraction in (0, 1.5, -1):
        with pytest.raises(ValueError, match=f"fraction={fraction} must be above 0"):
            data.label_fraction([0, 1], fraction)
