"""Laws of training: equal seeds, equal runs; stopping loses nothing; every parameter counts."""

import ast
import copy
import dataclasses
import inspect
import multiprocessing
import os
import resource
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import papermill
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tqdm import tqdm

from dml import checkpoints, data, runs, train

SMALL = {
    "dataset": "digits",
    "batch_size": 50,
    "images_per_class": 10,
    "epochs": 2,
    "embedding_size": 8,
    "device": "cpu",
}


def config(**more):
    return train.Config(**{**SMALL, **more})


@pytest.fixture(scope="module")
def sets():
    return data.load("digits")


def measured(outcome):
    """What a run measured, without how long it took."""
    clock = ("train_seconds", "eval_seconds")
    rows = [{k: v for k, v in row.items() if k not in clock} for row in outcome["history"]]
    return outcome["metrics"], rows


def stop_after(epochs, settings, sets, checkpoint):
    """A run that is interrupted after some epochs; its checkpoint stays."""
    save, count = checkpoints.save, []

    def counting(*args):
        save(*args)
        count.append(1)
        if len(count) == epochs:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoints, "save", counting)
        train.fit(settings, sets, checkpoint)


@pytest.mark.parametrize("mix", train.MIXES)
def test_the_same_seed_gives_the_same_run_and_another_seed_another(sets, mix):
    first, second, other = (
        measured(train.fit(config(mix=mix, seed=seed, positives=1), sets)[1]) for seed in (0, 0, 1)
    )
    assert first == second
    assert first != other


@pytest.mark.parametrize("loss", ["contrastive", "multi_similarity", "proxy_anchor", "proxy_nca"])
def test_a_stopped_run_ends_as_if_it_had_not_been_stopped(sets, loss, tmp_path):
    whole = config(loss=loss, mix="feature", epochs=3)
    expected = measured(train.fit(whole, sets)[1])
    stop_after(2, whole, sets, tmp_path / "checkpoint")
    torch.manual_seed(99)  # whatever the process did in between
    assert measured(train.fit(whole, sets, tmp_path / "checkpoint")[1]) == expected


def test_a_checkpoint_of_another_run_is_refused_by_what_differs(sets, tmp_path):
    train.fit(config(epochs=1), sets, tmp_path / "checkpoint")
    with pytest.raises(ValueError, match="another lr"):
        train.fit(config(epochs=1, lr=1e-4), sets, tmp_path / "checkpoint")


def damage(file, how):
    content = bytearray(file.read_bytes())
    if how == "cut short":
        content = content[: len(content) // 2]
    elif how == "empty":
        content = b""
    else:  # one bit, in the middle
        content[len(content) // 2] ^= 1
    file.write_bytes(content)
    if how == "missing":
        file.unlink()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "optimizer.bin", "run.bin"])
@pytest.mark.parametrize("how", ["cut short", "empty", "one bit", "missing"])
@pytest.mark.parametrize("both", [False, True], ids=["the last", "both"])
def test_of_damaged_checkpoints_the_newest_whole_one_is_gone_on_from(
    sets, tmp_path, how, both, name
):
    settings, path = config(epochs=4, mix="none"), tmp_path / "checkpoint"
    expected = measured(train.fit(settings, sets)[1])
    stop_after(3, settings, sets, path)
    for folder in (path, checkpoints.previous(path))[: 1 + both]:
        damage(folder / name, how)
    with pytest.warns(UserWarning, match=rf"checkpoint\S* is damaged \({name}"):
        outcome = train.fit(settings, sets, path)[1]
    assert measured(outcome) == expected


def test_a_run_killed_between_two_renames_goes_on_from_the_one_before(sets, tmp_path):
    settings, path = config(epochs=3, mix="none"), tmp_path / "checkpoint"
    expected = measured(train.fit(settings, sets)[1])
    stop_after(2, settings, sets, path)
    path.replace(path.with_suffix(".partial"))
    assert measured(train.fit(settings, sets, path)[1]) == expected


def run(settings, folder):
    """A run with its record, as the notebook makes it: what `kill` kills."""
    torch.set_num_threads(1)
    os.environ["DML_RESULTS"] = folder
    if runs.finished(settings) is None:
        sets = train.load(settings)
        runs.write(settings, train.fit(settings, sets, runs.checkpoint(settings.id))[1])


def test_a_run_killed_at_random_moments_has_the_record_of_an_uninterrupted_one(
    tmp_path, monkeypatch
):
    settings = config(epochs=6, images_per_class=None, loss="proxy_anchor")
    context = multiprocessing.get_context("forkserver")  # imports torch once, not at each start
    context.set_forkserver_preload(["tests.test_train"])

    def live(folder, seconds=None):
        process = context.Process(target=run, args=(settings, str(tmp_path / folder)))
        start = time.perf_counter()
        process.start()
        process.join(seconds)
        process.kill()
        process.join()
        return process.exitcode, time.perf_counter() - start

    live("whole", 0)  # the first start takes the imports
    code, whole = live("whole")
    assert code == 0
    moments = [*np.random.default_rng().uniform(0, 0.5 * whole, size=5), None]
    codes = [live("killed", moment)[0] for moment in moments]
    assert codes[0] == -signal.SIGKILL and codes[-1] == 0
    records = []
    for folder in ("whole", "killed"):
        monkeypatch.setenv("DML_RESULTS", str(tmp_path / folder))
        records.append(runs.finished(settings))
        left = {path.name for path in runs.folder(settings.id).iterdir()}
        assert left == {"record.json", "tensorboard"}
    assert measured(records[0]) == measured(records[1])
    assert records[0]["config"] == records[1]["config"]


def run_with_quota(settings, folder, size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    try:
        run(settings, folder)
    except OSError as error:
        Path(folder, "error").write_text(str(error))


def test_a_full_disk_is_named_and_loses_one_epoch(sets, tmp_path, monkeypatch):
    settings = config(epochs=3)
    expected = measured(train.fit(settings, sets)[1])
    monkeypatch.setenv("DML_RESULTS", str(tmp_path))
    checkpoint = runs.checkpoint(settings.id)
    stop_after(2, settings, sets, checkpoint)
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=run_with_quota, args=(settings, str(tmp_path), 100_000))
    process.start()
    process.join()
    assert "could not be written, is the disk full?" in (tmp_path / "error").read_text()
    left = {path.name for path in checkpoint.parent.glob("checkpoint*")}
    assert left == {"checkpoint", "checkpoint.previous"}
    assert measured(train.fit(settings, sets, checkpoint)[1]) == expected


def test_tensorboard_shows_every_step_and_epoch_of_a_run_that_was_continued(sets, tmp_path):
    settings = config(epochs=3, eval_every=1)
    stop_after(2, settings, sets, tmp_path / "checkpoint")
    _, outcome = train.fit(settings, sets, tmp_path / "checkpoint")
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    steps = [event.step for event in board.Scalars("step/loss")]
    assert steps == list(range(3 * (len(sets.train) // settings.batch_size)))
    shown = [event.value for event in board.Scalars("epoch/recall_at_1")]
    assert shown == pytest.approx([row["recall_at_1"] for row in outcome["history"]])


def test_training_lowers_the_loss(sets):
    history = train.fit(
        config(epochs=4, loss="contrastive", loss_options={"reduction": "nonzero_pairs"}), sets
    )[1]["history"]
    assert history[-1]["loss"] < history[0]["loss"]


def test_the_last_epoch_is_the_headline_and_the_best_is_named_for_what_it_is(sets):
    metrics = train.fit(config(epochs=3), sets)[1]["metrics"]
    assert metrics["last"]["epoch"] == 3 and metrics["last"]["selected_by"] == "the last epoch"
    assert metrics["best"]["recall_at_1"] >= metrics["last"]["recall_at_1"]
    assert "test" in metrics["best"]["selected_by"]


def first_step(sets, **more):
    """Loss and gradient of the first step of a run, the gradient as one vector."""
    more |= {"loss": "contrastive"}  # the exponentials of others magnify what is rounded
    settings = config(positives=1, frozen_bn=True, batch_size=20, images_per_class=4, **more)
    device = torch.device("cpu")
    parts = train.build(settings, sets, device)
    batches = data.loader(sets.train, settings.batch_size, settings.images_per_class, train=True)
    again = [next(iter(batches))] * 20  # float16 halves its scale until nothing overflows
    start = parts.rng.bit_generator.state
    for value, _ in train.steps(settings, parts, again, device, tqdm(disable=True)):
        gradient = torch.cat([p.grad.flatten() for p in parts.network.parameters()])
        if gradient.isfinite().all():
            return value, gradient
        parts.rng.bit_generator.state = start


SWITCHES = [
    ({"channels_last": True}, 1e-4),
    ({"accumulate": 3}, 1e-4),
    ({"precision": "bfloat16"}, 0.1),  # 8 bits of precision
    ({"precision": "float16"}, 0.01),  # 11 bits
]


@pytest.mark.parametrize("mix", train.MIXES)
@pytest.mark.parametrize("switch, error", SWITCHES, ids=lambda value: str(value))
def test_a_switch_does_not_change_what_is_learnt(sets, mix, switch, error):
    plain_loss, plain = first_step(sets, mix=mix)
    loss, gradient = first_step(sets, mix=mix, **switch)
    assert loss == pytest.approx(plain_loss, rel=error)
    assert (gradient - plain).norm() < error * plain.norm()


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler")
def test_compiling_does_not_change_what_is_learnt(sets):
    plain_loss, plain = first_step(sets, mix="feature")
    loss, gradient = first_step(sets, mix="feature", compile=True)
    assert loss == pytest.approx(plain_loss, rel=1e-4)
    assert (gradient - plain).norm() < 1e-4 * plain.norm()


def test_switches_together_learn_the_same_over_an_epoch(sets):
    settings = config(epochs=1, mix="none", frozen_bn=True)
    switched = dataclasses.replace(settings, channels_last=True, accumulate=4)
    plain, switched = (
        train.fit(each, sets)[1]["history"][0]["loss"] for each in (settings, switched)
    )
    assert switched == pytest.approx(plain, rel=1e-3)


def test_in_warmup_the_head_and_the_proxies_learn_alone(sets):
    settings = config(loss="proxy_anchor", mix="feature", warmup=1, epochs=2)
    start = train.build(settings, sets, torch.device("cpu"))
    before = [copy.deepcopy(m.state_dict()) for m in (start.network, start.criterion)]
    epochs, steps = [], train.steps

    def watched(config, parts, *args):
        yield from steps(config, parts, *args)
        epochs.append([copy.deepcopy(m.state_dict()) for m in (parts.network, parts.criterion)])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "steps", watched)
        train.fit(settings, sets)
    weights = [name for name, _ in start.network.backbone.named_parameters(prefix="backbone")]
    (warm, warm_proxies), (after, _) = epochs
    assert all(torch.equal(before[0][name], warm[name]) for name in weights)
    assert not any(torch.equal(warm[name], after[name]) for name in weights)
    assert not torch.equal(before[0]["embedding.weight"], warm["embedding.weight"])
    assert all(not torch.equal(old, warm_proxies[name]) for name, old in before[1].items())


def test_a_run_stopped_in_warmup_ends_as_if_it_had_not_been_stopped(sets, tmp_path):
    settings = config(warmup=2, epochs=4, mix="none")
    expected = measured(train.fit(settings, sets)[1])
    stop_after(2, settings, sets, tmp_path / "checkpoint")
    assert measured(train.fit(settings, sets, tmp_path / "checkpoint")[1]) == expected


def test_the_step_schedule_is_torchs(sets):
    settings = config(schedule="step", lr_step=2, lr_gamma=0.5, epochs=5)
    history = train.fit(settings, sets)[1]["history"]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=settings.lr)
    theirs = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)
    for row in history:
        assert row["lr"] == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()


def test_a_loss_that_is_not_finite_stops_with_the_step(sets):
    with pytest.raises((FloatingPointError, ValueError), match=r"step|finite"):
        train.fit(config(lr=1e20, clip_value=None, epochs=1), sets)


def test_equal_seeds_see_equal_batches_whatever_the_method(sets):
    """So that differences between methods are paired."""

    def first_batches(**more):
        settings = config(**more)
        batches = data.loader(
            sets.train,
            settings.batch_size,
            settings.images_per_class,
            train=True,
            seed=settings.seed,
        )
        batches.set_epoch(1)
        return [labels.tolist() for _, labels in batches]

    assert first_batches(mix="none") == first_batches(mix="input", loss="contrastive")
    assert first_batches(seed=1) != first_batches(seed=0)


# -- Parameters --


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"dataset": "glyfs"}, r"dataset='glyfs'.*glyphs"),
        ({"loss": "triplet"}, r"loss='triplet'.*multi_similarity"),
        ({"mix": "pixel"}, r"mix='pixel'.*none, input, feature, embed"),
        ({"epochs": "ten"}, r"epochs='ten' must be int, not str"),
        ({"epochs": 2.5}, r"epochs=2.5 must be int, not float"),
        ({"epochs": True}, r"epochs=True must be int, not bool"),
        ({"epochs": 0}, r"epochs must be positive"),
        ({"warmup": 2}, r"warmup=2 must be 0 to 1, below epochs"),
        ({"accumulate": 2}, r"accumulate=2 needs frozen_bn=True"),
        ({"processes": 2}, r"processes=2 needs frozen_bn=True"),
        ({"lr": "fast"}, r"lr='fast' must be float"),
        ({"tag": "a/b"}, r"tag='a/b'"),
        ({"miner_epsilon": 0.1, "loss": "contrastive"}, r"miner_epsilon"),
        (
            {"learning_rate": 0.1, "epoch": 3},
            r"no such parameter: epoch, learning_rate. Valid are: .*epochs",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_bad_parameter_is_named_with_what_is_valid(given, says):
    with pytest.raises(ValueError, match=says):
        train.Config.from_namespace({**SMALL, **given})


def test_an_unknown_device_is_named():
    with pytest.raises(ValueError, match="device='gpu'"):
        train.pick_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="no CUDA device"):
            train.pick_device("cuda")


def test_the_notebook_has_every_parameter_with_its_type_reason_and_default():
    notebook = papermill.inspect_notebook(str(runs.TRAINING))
    fields = {f.name: f for f in dataclasses.fields(train.Config)}
    assert notebook.keys() == fields.keys()
    for name, parameter in notebook.items():
        assert parameter["help"], f"{name} has no reason"
        kind = fields[name].type.split(" |")[0].split("[")[0].replace("tuple", "list")
        assert parameter["inferred_type_name"] == kind
    defaults = {name: ast.literal_eval(p["default"]) for name, p in notebook.items()}
    assert train.Config.from_namespace(defaults) == train.Config()


@pytest.mark.parametrize(
    "change",
    [
        {"weight": 2.0},
        {"alpha": 0.2},
        {"hardest": 1},
        {"positives": 1},
        {"pairs": ("positive-negative",)},
        {"loss_options": {"margin": 0.3}},
        {"miner_epsilon": 0.1},
        {"lr": 1e-2},
        {"proxy_lr_factor": 1.0, "loss": "proxy_anchor"},
        {"weight_decay": 0.1},
        {"schedule": "step"},
        {"warmup": 1},
        {"clip_value": 1e-4},
        {"batch_size": 20},
        {"images_per_class": 25},
        {"augment": "affine"},
    ],
    ids=lambda change: ",".join(change),
)
def test_changing_a_parameter_changes_the_run(sets, change):
    base = {"mix": "embed", "epochs": 2}
    if "loss" in change:
        base["loss"] = change["loss"]
    outcomes = [
        measured(train.fit(config(**{**base, **more}), sets)[1])[1][-1]["loss"]
        for more in ({}, change)
    ]
    assert outcomes[0] != outcomes[1]


def test_the_loop_is_short_enough_to_read():
    assert len(inspect.getsource(train.steps).splitlines()) < 60


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("mix", train.MIXES)
def test_a_gpu_trains_every_space_in_every_precision(sets, mix, precision):
    outcome = train.fit(config(device="cuda", mix=mix, precision=precision), sets)[1]
    assert outcome["peak_memory_mb"] > 0
    assert outcome["metrics"]["last"]["recall_at_1"] > 0.5


def test_a_fold_is_held_out_of_training_and_judges_in_place_of_the_test_classes():
    whole = data.load("digits")
    folds = [train.load(config(folds=2, fold=i)) for i in range(2)]
    held_out = [set(sets.query.classes) for sets in folds]
    assert set.union(*held_out) == set(whole.train.classes) and not set.intersection(*held_out)
    for sets in folds:
        assert not set(sets.train.classes) & set(sets.query.classes)
        assert not set(sets.query.classes) & set(whole.query.classes)
        assert len(sets.train) + len(sets.query) == len(whole.train)
    settings = config(folds=2, epochs=1, batch_size=10, images_per_class=5)
    metrics = train.fit(settings, folds[0])[1]["metrics"]
    assert "validation" in metrics["best"]["selected_by"]
    assert metrics["last"]["queries"] == len(folds[0].query)
    assert "fold0of2" in settings.id


@pytest.mark.parametrize("folds, fold", [(1, 0), (6, 0), (2, 2), (2, -1)])
def test_a_fold_that_is_not_there_is_named(folds, fold):
    with pytest.raises(ValueError, match=f"fold {fold} of {folds}"):
        train.load(config(folds=folds, fold=fold))
