import os
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from dml import data


@pytest.fixture
def tree(tmp_path):
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        for name in "ab":
            (tmp_path / "folder" / part / name).mkdir(parents=True)
            for i in range(4):
                pixels = rng.integers(256, size=(300 + i, 400, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "folder" / part / name / f"{i}.png")
    return tmp_path


def load(tree, **options):
    return data.load("folder", tree, size=None, **options)


def stamps(tree):
    return {f: f.stat().st_mtime_ns for f in (tree / "cache").rglob("*") if f.is_file()}


def test_test_crops_from_the_cache_equal_those_from_the_files(tree):
    files, cached = (data.loader(load(tree, **o).query, 8) for o in ({}, {"cache": 256}))
    (images, labels), (others, same_labels) = next(iter(files)), next(iter(cached))
    assert torch.equal(images, others) and torch.equal(labels, same_labels)


def test_images_keep_their_shape(tree):
    image, _ = load(tree, cache=64).train[3]
    assert image.shape == (3, 64, 84) and image.dtype == torch.uint8


def test_a_cache_is_built_once_and_again_when_a_file_changes(tree):
    first = load(tree, cache=64).train[0][0].clone()
    before = stamps(tree)
    assert before and torch.equal(load(tree, cache=64).train[0][0], first)
    assert stamps(tree) == before
    Image.new("RGB", (400, 300), "white").save(tree / "folder" / "train" / "a" / "0.png")
    assert (load(tree, cache=64).train[0][0] == 255).all()


def test_a_stopped_build_is_not_taken_for_a_cache(tree):
    (tree / "folder" / "test" / "b" / "3.png").write_bytes(b"junk")
    with pytest.raises(ValueError, match=r"3\.png"):
        load(tree, cache=64)
    assert not [f for f in os.listdir(tree / "cache") if f.startswith("folder-query")]


def test_writing_to_an_image_does_not_reach_the_cache(tree):
    image, _ = load(tree, cache=64).train[0]
    image.zero_()
    assert load(tree, cache=64).train[0][0].any()


def test_a_part_of_a_split_and_a_copy_in_another_process_show_the_same_images(tree):
    train = load(tree, cache=64).train
    taken = pickle.loads(pickle.dumps(train.take([6, 1])))
    assert torch.equal(taken[0][0], train[6][0]) and torch.equal(taken[1][0], train[1][0])
    assert torch.equal(taken.take([1])[0][0], train[1][0])


def test_workers_serve_the_same_batches_from_the_cache(tree):
    train = load(tree, cache=64).train
    crop = data.transforms.random_crop(32)
    alone, shared = (
        list(data.loader(train, 4, 2, train=True, transform=crop, workers=w)) for w in (0, 2)
    )
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(alone, shared, strict=True))


def test_a_set_in_memory_needs_no_cache():
    with pytest.raises(ValueError, match=r"digits is in memory.*cache=64"):
        data.load("digits", cache=64)
