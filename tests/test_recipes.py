"""The official commands, alone and as data, against the recipes that hold them."""

import argparse
import csv
import dataclasses
import shlex
from pathlib import Path

import nbformat
import pytest

from dml import classification, nngk, runs, sweep, train
from tests.data.test_layouts import cars, cub, inshop, sop  # noqa: F401  (fixtures)

with (Path(__file__).parent / "commands.csv").open() as file:
    COMMANDS = list(csv.DictReader(file))
DATASETS = ("cub", "cars", "sop", "inshop")
LOSSES = {
    "contrastive": "contrastive",
    "multisimilarity": "multi_similarity",
    "proxyanchor": "proxy_anchor",
}


def of(paper):
    return [row for row in COMMANDS if row["paper"] == paper]


def metrix(command):
    """What a command of Metrix's main.py says in our names, with its defaults elsewhere."""
    parser = argparse.ArgumentParser()
    for name, kind, default in (
        ("batch_size", int, None),
        ("num_workers", int, None),
        ("embedding_size", int, None),
        ("num_epochs", int, None),
        ("lr", float, None),
        ("lr_decay_step", int, 10),
        ("lr_decay_gamma", float, None),
        ("warm", int, 5),
        ("bn_freeze", int, 1),
        ("images_per_class", int, None),
        ("alpha", float, None),
        ("loss", str, None),
        ("mode", str, None),
    ):
        parser.add_argument(f"--{name}", type=kind, default=default)
    for name in ("dataset", "data_root", "save_root"):  # said elsewhere
        parser.add_argument(f"--{name}")
    parser.add_argument("--save_model", nargs="?")
    given = parser.parse_args(shlex.split(command)[2:])
    return {
        "loss": LOSSES[given.loss],
        "mix": "none" if given.mode == "baseline" else given.mode,
        "batch_size": given.batch_size,
        "workers": given.num_workers,
        "embedding_size": given.embedding_size,
        "epochs": given.num_epochs,
        "lr": given.lr,
        "schedule": "step",
        "lr_step": given.lr_decay_step,
        "lr_gamma": given.lr_decay_gamma,
        "warmup": given.warm,
        "frozen_bn": bool(given.bn_freeze),
        "images_per_class": given.images_per_class,
        "alpha": given.alpha,
    }


def all_of_metrix():
    """(data set, loss, mix) -> settings: the commands as they stand, and those that their text has
    by a word: "modify --mode", "using the same hyperparameters as in the baseline"."""
    cells = {}
    for row in of("metrix"):
        settings = metrix(row["command"])
        cells[row["dataset"], settings["loss"], settings["mix"]] = settings
    for dataset in DATASETS:
        for loss in LOSSES.values():
            baseline = cells[dataset, loss, "none"]
            feature = cells.setdefault((dataset, loss, "feature"), {**baseline, "mix": "feature"})
            for mix in ("input", "embed"):
                cells[dataset, loss, mix] = {**feature, "mix": mix}
    return cells


@pytest.mark.parametrize("dataset", DATASETS)
def test_the_grid_of_a_data_set_is_every_command_of_metrix_value_by_value(dataset):
    theirs = {key: settings for key, settings in all_of_metrix().items() if key[0] == dataset}
    ours = {}
    for job in sweep.expand(runs.RECIPES / f"grid-metrix-{dataset}.yaml"):
        config = runs.configure(*job)
        settings = ours.setdefault((config.dataset, config.loss, config.mix), [])
        settings.append({key: getattr(config, key) for key in next(iter(theirs.values()))})
    assert ours.keys() == theirs.keys() and len(ours) == 3 * 4
    for key, settings in ours.items():
        assert settings == [theirs[key]] * 3  # seeds


def test_what_no_command_of_metrix_says_is_as_its_code_has_it():
    for dataset in DATASETS:
        for job in sweep.expand(runs.RECIPES / f"grid-metrix-{dataset}.yaml"):
            config = runs.configure(*job)
            assert (config.backbone, config.weights) == ("resnet50.tv_in1k", "pretrained")
            assert (config.weight_decay, config.clip_value) == (1e-4, 10)
            assert (config.proxy_lr_factor, config.weight, config.augment) == (100, 0.4, "crop")
            assert config.hardest == (1 if config.mix == "input" else None)
            assert (config.miner_epsilon == 0.39) == (config.loss == "multi_similarity")


def test_a_command_that_says_another_data_set_than_its_heading_is_the_one_that_is_known():
    wrong = [
        (row["dataset"], metrix(row["command"])["loss"])
        for row in of("metrix")
        if f"--dataset {row['dataset']} " not in row["command"]
    ]
    assert wrong == [("inshop", "contrastive")]
    assert "--dataset sop" in (runs.RECIPES / "grid-metrix-inshop.yaml").read_text()


@pytest.mark.parametrize("row", of("proxygml"), ids=lambda row: row["dataset"])
def test_the_recipe_of_proxygml_is_its_command_value_by_value(row):
    parser = argparse.ArgumentParser()
    parser.add_argument("-b", type=int)
    parser.add_argument("-C", type=int)
    for name, kind in (("epochs", int), ("dim", int), ("r", float), ("N", int)):
        parser.add_argument(f"--{name}", type=kind)
    for name in ("weight_lambda", "centerlr", "rate"):
        parser.add_argument(f"--{name}", type=float)
    parser.add_argument("--new_epoch_to_decay", type=int, nargs="+")
    parser.add_argument("--freeze_BN", action="store_true")
    parser.add_argument("--dataset"), parser.add_argument("--gpu")
    given = parser.parse_args(shlex.split(row["command"])[2:])
    config = runs.configure(f"proxygml-{row['dataset']}", {})
    assert config.loss_options == {
        "proxies_per_class": given.N,
        "r": given.r,
        "weight_lambda": given.weight_lambda,
    }
    assert (config.batch_size, config.epochs) == (given.b, given.epochs)
    assert (config.embedding_size, config.frozen_bn) == (given.dim, given.freeze_BN)
    assert config.lr * config.proxy_lr_factor == pytest.approx(given.centerlr)
    assert (config.schedule, config.lr_gamma) == ("step", given.rate)
    decays = [e for e in range(1, config.epochs) if e % config.lr_step == 0]
    assert decays == given.new_epoch_to_decay
    assert train.data.PUBLISHED[row["dataset"]]["train"][1] == given.C


@pytest.mark.parametrize("row", of("mbdml"), ids=lambda row: row["command"].split()[1])
def test_the_recipes_of_mbdml_are_its_commands_value_by_value(row):
    """Their name says CIFAR-10, their folder and the number of classes CIFAR-100: both recipes have
    the values. MbDML-2 says --alpha twice, the second time 0, which would not mix: beta is meant,
    the weight of the loss of clean images, which MbDML-2 has not."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--max_epochs", type=int)
    parser.add_argument("--scale_mixup", type=float)
    parser.add_argument("--alpha", type=float, action="append")
    parser.add_argument("--beta", type=float)
    parser.add_argument("--save_dir")
    given, _ = parser.parse_known_args(shlex.split(row["command"])[2:])
    number = shlex.split(row["command"])[1].removeprefix("train_MbDML")[0]
    alpha, beta = (*given.alpha, given.beta)[:2]
    method = nngk.METHODS[f"mbdml{number}"]
    assert (method.b, method.c) == (beta, given.scale_mixup)
    for dataset in ("cifar10", "cifar100"):
        recipe = runs.recipe(f"mbdml-{dataset}")
        assert recipe.pop("notebook") == "10_mbdml"
        config = classification.Config(**recipe)
        assert (config.epochs, config.alpha) == (given.max_epochs, alpha)
        assert config.neighbours == int(given.save_dir.rpartition("=")[2])


# -- From a tree in the official layout to a row of the results

TINY = {
    "backbone": "small",
    "weights": "none",
    "embedding_size": 8,
    "batch_size": 2,
    "images_per_class": None,
    "epochs": 1,
    "warmup": 0,
    "workers": 0,
    "k": [1, 2],
    "device": "cpu",
    "seed": 0,
}


@pytest.fixture
def tree(request, tmp_path, monkeypatch):
    """A tiny tree in the official layout of a data set, and a folder for results of its own."""
    monkeypatch.setenv("DML_RESULTS", str(tmp_path / "results"))
    monkeypatch.chdir(runs.ROOT)
    return TINY | {"root": str(request.getfixturevalue(request.param))}


@pytest.mark.filterwarnings("ignore:.*published protocol")
@pytest.mark.parametrize("tree", DATASETS, indirect=True)
def test_every_run_of_a_grid_goes_from_images_in_files_to_a_row_of_the_results(tree, request):
    dataset = request.node.callspec.params["tree"]
    jobs = sweep.expand(runs.RECIPES / f"grid-metrix-{dataset}.yaml")
    cells = [(recipe, settings) for recipe, settings in jobs if settings["seed"] == 0]
    for recipe, settings in cells:
        config = runs.configure(recipe, settings | tree)
        outcome = train.fit(config, train.load(config))[1]
        runs.write(config, outcome)
    rows = runs.headline()
    assert set(zip(rows["loss"], rows["mix"], strict=True)) == {key[1:] for key in all_of_metrix()}
    assert (rows["dataset"] == dataset).all() and rows["recall_at_1"].between(0, 100).all()
    assert {"recall_at_1", "recall_at_2"} <= set(outcome["metrics"]["last"])


@pytest.mark.parametrize(
    "tree, loss, mix",
    [
        ("cub", "contrastive", "feature"),
        ("cars", "multi_similarity", "input"),
        ("sop", "proxy_anchor", "embed"),
        ("inshop", "multi_similarity", "none"),
    ],
    indirect=["tree"],
)
def test_papermill_leaves_the_record_and_the_executed_notebook_of_a_data_set(
    tree, loss, mix, request
):
    dataset = request.node.callspec.params["tree"]
    jobs = sweep.expand(runs.RECIPES / f"grid-metrix-{dataset}.yaml")
    (job,) = [
        (recipe, settings | tree)
        for recipe, settings in jobs
        if settings["seed"] == 0
        and (settings.get("loss", "multi_similarity"), settings["mix"]) == (loss, mix)
    ]
    record = runs.execute(*job)
    assert (record["config"]["dataset"], record["config"]["loss"]) == (dataset, loss)
    names = sorted(path.name for path in runs.folder(record["id"]).iterdir())
    assert names == ["record.json", "tensorboard", "training.ipynb"]
    notebook = nbformat.read(runs.folder(record["id"]) / "training.ipynb", 4)
    assert any(cell.get("outputs") for cell in notebook.cells)
    assert runs.load(dataset=dataset)["id"].tolist() == [record["id"]]


def test_compared_settings_are_those_that_validation_chose():
    trials = runs.load(dataset="glyphs", profile="paper", folds=4)
    trials = trials[trials["tag"].str.startswith("methods.")]
    means = trials.groupby(["loss", "mix", "tag"])["recall_at_1"].mean()
    best = dict(means.groupby(["loss", "mix"]).idxmax())
    fields = {"w": "weight", "k": "hardest", "alpha": "alpha"}
    compared = [runs.configure(*job) for job in sweep.expand(runs.RECIPES / "grid-methods.yaml")]
    for config in compared:
        if (config.loss, config.mix) in best:
            *_, tag = best.pop((config.loss, config.mix))
            name, value = tag.removeprefix("methods.").split("=")
            assert getattr(config, fields[name]) == float(value), config.id
    assert not best


def test_larger_images_are_compared_with_the_settings_of_the_small_ones():
    small, large = (
        {(c.loss, c.mix, c.seed): c for c in (runs.configure(*job) for job in sweep.expand(path))}
        for path in (runs.RECIPES / "grid-methods.yaml", runs.RECIPES / "grid-methods-32.yaml")
    )
    for key, config in large.items():
        of = {"tag": "methods", "space": True}
        of["dataset_options"] = config.dataset_options | {"size": 16}
        assert dataclasses.replace(config, **of) == small[key]


@pytest.mark.parametrize("name", ["emoji", "glyphs"])
def test_proxy_anchor_has_what_validation_chose(name):
    trials = runs.load(dataset=name, loss="proxy_anchor", profile="paper", folds=4)
    trials = trials[trials["tag"].str.startswith(f"{name}.")]
    best = trials.loc[trials["recall_at_1"].idxmax()]
    compared = [runs.configure(*job) for job in sweep.expand(runs.RECIPES / f"grid-{name}.yaml")]
    for config in compared:
        if config.loss == "proxy_anchor":
            for field in ("loss_options", "proxy_lr_factor", "lr", "warmup"):
                assert getattr(config, field) == best[field]
