"""Laws of MbDML's protocol: which images are labelled, equal seeds, equal runs, records made once,
and every data set of the paper from a tiny tree in its own layout."""

import dataclasses
import itertools
import json
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from dml import classification, data, nngk, runs

SMALL = {
    "dataset": "digits",
    "backbone": "small",
    "weights": "none",
    "freeze_norm": False,
    "augment": "none",
    "neighbours": 20,
    "epochs": 2,
    "refresh": 1,
    "eval_every": 1,
    "seeds": 1,
    "lr": 1e-3,
    "device": "cpu",
}


def config(**more):
    return classification.Config(**{**SMALL, **more})


@pytest.fixture(scope="module")
def digits():
    return classification.load(config())


@pytest.fixture(autouse=True)
def results(tmp_path, monkeypatch):
    monkeypatch.setenv("DML_RESULTS", str(tmp_path / "results"))
    return tmp_path / "results"


def history(sets, method="nngk", seed=0, **more):
    return [row for row, _ in classification.epochs(config(**more), sets, method, seed)]


def test_a_retrieval_set_becomes_one_of_seen_classes_and_no_image_is_in_both_parts(digits):
    apart = data.load("digits")
    assert digits.train.classes == digits.query.classes == [str(d) for d in range(10)]
    assert len(digits.train) + len(digits.query) == len(apart.train) + len(apart.query)
    share = digits.train.labels.bincount() / digits.query.labels.bincount()
    assert (share - 1).abs().max() < 0.02
    images = {tuple(i.flatten().tolist()) for i in apart.train.images}
    zeros = digits.query.images[digits.query.labels == 0]
    assert {tuple(i.flatten().tolist()) for i in zeros} <= images


def test_a_tenth_of_every_class_is_labelled_another_in_every_run(digits):
    splits = [classification.labelled(config(), digits, seed) for seed in (0, 0, 1)]
    for split in splits:
        assert split.labels.bincount().tolist() == [9] * 10
    assert torch.equal(splits[0].images, splits[1].images)
    assert not torch.equal(splits[0].images, splits[2].images)


@pytest.mark.parametrize("method", classification.METHODS)
def test_every_method_learns_and_equal_seeds_are_equal_runs(digits, method):
    first = history(digits, method, epochs=10, refresh=5, eval_every=10)
    assert first[-1]["test_accuracy"] > 0.5  # of ten classes, from random weights
    again = history(digits, method, epochs=2, refresh=5, eval_every=10)
    assert first[1:3] == [again[1], {k: v for k, v in again[2].items() if k != "test_accuracy"}]
    assert first[1]["loss"] != history(digits, method, seed=1, epochs=1)[1]["loss"]


@pytest.mark.parametrize(
    "change",
    [
        {"label_fraction": 0.2},
        {"sigma": 3.0},
        {"neighbours": 40},
        {"refresh": 2},
        {"alpha": 0.0},
        {"released": True},
        {"freeze_norm": True},
        {"augment": "flip"},
        {"batch_size": 16},
        {"images_per_class": 4},
        {"lr": 1e-2},
        {"proxy_lr_factor": 100.0},
    ],
    ids=lambda change: ",".join(change),
)
def test_changing_a_parameter_changes_the_run(digits, change):
    losses = [history(digits, "mbdml3", **more)[-1]["loss"] for more in ({}, change)]
    assert losses[0] != losses[1]


def test_accuracy_is_over_all_images_and_not_over_full_batches():
    predicted, labels = torch.zeros(33), torch.tensor([0.0] * 32 + [1])
    assert classification.accuracy(predicted, labels) == pytest.approx(32 / 33)


def test_in_training_accuracy_no_image_is_its_own_neighbour(digits):
    noise = data.Split(
        torch.randint(256, (200, 1, 8, 8), dtype=torch.uint8), torch.arange(200) % 10, range(10)
    )
    sets = dataclasses.replace(digits, train=noise)
    (row, _), *_ = classification.epochs(
        config(label_fraction=1.0, neighbours=1), sets, "nngk", seed=0
    )
    assert row["train_accuracy"] < 0.3  # with its own centre it would be 1


def test_centres_move_at_every_refresh_only(digits):
    seen = []
    for row, state in classification.epochs(config(epochs=4, refresh=2), digits, "nngk", 0):
        seen.append((row["epoch"], state.criterion.kernels.centres.clone()))
    pairs = itertools.pairwise(seen)
    moved = [n for (_, before), (n, after) in pairs if not torch.equal(before, after)]
    assert moved == [2, 4]


def test_frozen_batch_norm_keeps_its_statistics(digits):
    network = classification.Network(config(freeze_norm=True), 1).train()
    before = {k: v.clone() for k, v in network.state_dict().items() if "running" in k}
    network(digits.train.images[:32])
    assert before and all(torch.equal(v, network.state_dict()[k]) for k, v in before.items())


# -- Records


def test_a_run_is_made_once_and_its_record_tells_what_made_it(digits, results):
    first = classification.run(config(), digits, "nngk", 0)
    path = results / "mbdml" / "digits-nngk-s0.json"
    assert json.loads(path.read_text()) == first
    assert first["metrics"]["last"]["test_accuracy"] == first["history"][-1]["test_accuracy"]
    assert first["images"] == {"labelled": 90, "test": len(digits.query)}
    assert {"versions", "commit", "seconds", "device"} <= first.keys()
    assert classification.run(config(seeds=5, methods=("nngk",)), None, "nngk", 0) == first
    with pytest.raises(ValueError, match="another sigma: give this one a tag"):
        classification.run(config(sigma=2.0), digits, "nngk", 0)
    assert classification.run(config(sigma=2.0, tag="s2"), digits, "nngk", 0) != first


def test_the_table_has_mean_and_deviation_of_the_runs_beside_the_published(digits):
    wanted = config(methods=("nngk", "mixup"), seeds=2)
    assert not len(classification.table(wanted))  # none on record
    rows = classification.table(wanted, digits)
    last = rows[rows["epoch"] == 2].set_index(["method", "seed"])["test_accuracy"]
    published = pd.read_csv(runs.ROOT / "results" / "published" / "mbdml.csv")
    summary = classification.summary(rows, published[published["dataset"] == "mnist"])
    assert list(summary.index) == ["mixup", "nngk"] and set(summary["runs"]) == {2}
    assert summary.loc["nngk", "mean"] == pytest.approx(100 * last["nngk"].mean())
    assert summary.loc["nngk", "std"] == pytest.approx(100 * last["nngk"].std())
    assert summary.loc["nngk", "published_mean"] == 97.96
    assert classification.cells(summary).loc["nngk", "published (%)"] == "97.96 ± 0.19"
    assert len(classification.table(wanted)) == len(rows)


# -- The protocol of the paper, on tiny trees in the layouts of its data sets


def png(path, rng, size=40):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(256, size=(size, size, 3), dtype=np.uint8)).save(path)


def idx(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    path.write_bytes(header + array.tobytes())


def tiny_mnist(root, folder, rng):
    for part, n in (("train", 200), ("t10k", 40)):
        raw = root / folder / "raw"
        idx(raw / f"{part}-images-idx3-ubyte", rng.integers(256, size=(n, 28, 28), dtype=np.uint8))
        idx(raw / f"{part}-labels-idx1-ubyte", (np.arange(n) % 10).astype(np.uint8))


def tiny_cifar(root, name, classes, monkeypatch, rng):
    from torchvision import datasets

    source = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    base = root / source.base_folder
    base.mkdir(parents=True)
    key = "labels" if name == "cifar10" else "fine_labels"
    for file, _ in [*source.train_list, *source.test_list]:
        n = classes * (2 if "test" in file else 20)
        pixels = rng.integers(256, size=(n, 3072), dtype=np.uint8)
        entry = {"data": pixels, key: [i % classes for i in range(n)]}
        (base / file).write_bytes(pickle.dumps(entry))
    names = [f"class {c}" for c in range(classes)]
    meta = base / source.meta["filename"]
    meta.write_bytes(pickle.dumps({source.meta["key"]: names}))
    # torchvision knows the real files by their checksums
    monkeypatch.setattr(datasets.cifar, "check_integrity", lambda path, md5=None: True)


def tree(name, root, monkeypatch):
    rng = np.random.default_rng(0)
    if name == "flowers17":
        for i in range(1, 1361):
            path = root / "flowers17" / "jpg" / f"image_{i:04d}.jpg"
            png(path, rng, size=8)
    elif name in ("mnist", "fashion_mnist"):
        tiny_mnist(root, {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}[name], rng)
    elif name == "folder":
        for part in ("train", "test"):
            for c in range(3):
                for i in range(20):
                    png(root / "folder" / part / f"class{c}" / f"{i}.png", rng)
    elif name.startswith("cifar"):
        tiny_cifar(root, name, {"cifar10": 10, "cifar100": 100}[name], monkeypatch, rng)


RECIPES = [name for name in runs.recipe_names("10_mbdml")]


@pytest.mark.filterwarnings("ignore:.*the published protocol")
@pytest.mark.parametrize("recipe", [r for r in RECIPES if r not in ("mbdml-glyphs",)])
def test_the_recipe_of_every_data_set_runs_on_a_tiny_tree_in_its_layout(
    recipe, tmp_path, monkeypatch
):
    given = runs.recipe(recipe)
    assert given.pop("notebook") == "10_mbdml"
    full = classification.Config(**given)
    tree(full.dataset, tmp_path, monkeypatch)
    options = {"size": 16} if "size" in data.options(full.dataset) else {}
    small = {"backbone": "small", "weights": "none", "epochs": 1, "batch_size": 6, "seeds": 1}
    small |= {"root": str(tmp_path), "dataset_options": options, "device": "cpu", "neighbours": 4}
    small |= {"label_fraction": max(full.label_fraction, 0.1), "methods": ("mbdml3", "triplet")}
    tiny = dataclasses.replace(full, **small)
    sets = classification.load(tiny)
    rows = classification.table(tiny, sets)
    assert rows["test_accuracy"].notna().any() and set(rows["method"]) == set(tiny.methods)
    share = len(classification.labelled(tiny, sets, 0)) / len(sets.train)
    assert share == pytest.approx(full.label_fraction, abs=0.01)


def test_the_papers_recipes_are_the_official_values():
    for name in ("cifar10", "cifar100", "mnist", "flowers17"):
        given = runs.recipe(f"mbdml-{name}")
        given.pop("notebook")
        full = classification.Config(**given)
        assert (full.sigma, full.refresh, full.alpha, full.epochs) == (10, 5, 1, 200)
        assert (full.batch_size, full.lr, full.label_fraction, full.seeds) == (32, 1e-5, 0.1, 10)
        assert full.methods == classification.METHODS and full.backbone == "resnet50.tv_in1k"
    assert nngk.METHODS["mbdml3"] == nngk.Method(b=1, c=2)


# -- Bad input


@pytest.mark.parametrize(
    "change, message",
    [
        ({"methods": ("mbdml4",)}, "'mbdml4' is not one of: contrastive, "),
        ({"dataset": "cifar"}, "'cifar' is not one of: .*cifar10"),
        ({"sigma": 0.0}, "sigma must be above 0"),
        ({"sigma": "ten"}, "sigma='ten' must be float"),
        ({"epochs": 0}, "epochs must be above 0"),
    ],
)
def test_a_bad_setting_is_named_before_any_work(change, message):
    with pytest.raises(ValueError, match=message):
        config(**change)


def test_a_misspelt_parameter_is_named():
    with pytest.raises(ValueError, match=r"no such parameter: sigmma. Valid are: .*sigma"):
        classification.Config.from_namespace({**SMALL, "sigmma": 1.0})


@pytest.mark.parametrize(
    "change, message",
    [
        ({"label_fraction": 0.001}, "leaves class 0, of .* unlabelled"),
        ({"label_fraction": 0.012}, "leaves class '0' one label; kernels need two"),
        ({"neighbours": 91}, "neighbours=91 is not in 1 to 90: there are 90 centres"),
        ({"neighbours": 90}, "neighbours=90 is not in 1 to 89"),
    ],
)
def test_bad_input_is_named(digits, change, message):
    with pytest.raises(ValueError, match=message):
        history(digits, "nngk", **change)
