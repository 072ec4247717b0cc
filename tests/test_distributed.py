"""Several processes see one batch: the library's wrapper gathers, our losses take what it gives;
our training divides the backbone's work."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from tqdm import tqdm

from dml import checkpoints, data, losses, mixup, runs, train

WORLD, B, D, C = 2, 12, 6, 4


def loss_of(name):
    torch.manual_seed(0)
    clean = losses.build(name, C, D).double()
    return mixup.Metrix(clean, generator=np.random.default_rng(0))


def batch():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(B, D, generator=generator, dtype=torch.float64)
    return x, torch.arange(B) % C


def process(rank, name, folder):
    """One process: its half of the batch, the wrapped loss, and what came of it."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=WORLD)
    x, labels = (part.chunk(WORLD)[rank] for part in batch())
    x = x.clone().requires_grad_()
    value = DistributedLossWrapper(loss_of(name))(x, labels)
    value.backward()
    torch.save({"value": value.detach(), "gradient": x.grad}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("name", ["multi_similarity", "proxy_anchor"])
def test_two_processes_have_the_loss_and_the_gradient_of_one(name, tmp_path):
    torch.multiprocessing.spawn(process, (name, str(tmp_path)), nprocs=WORLD)
    halves = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]
    x, labels = batch()
    value = loss_of(name)(x.requires_grad_(), labels)
    value.backward()
    # the wrapper multiplies by the number of processes, because DDP then averages gradients
    for half in halves:
        torch.testing.assert_close(half["value"], WORLD * value.detach())
    gradient = torch.cat([half["gradient"] for half in halves])
    torch.testing.assert_close(gradient, WORLD * x.grad)


SETTINGS = {
    "dataset": "digits",
    "loss": "proxy_anchor",
    "batch_size": 25,  # odd, so that a share is short
    "images_per_class": 5,
    "epochs": 1,
    "embedding_size": 8,
    "frozen_bn": True,
    "processes": WORLD,
    "device": "cpu",
}


def trained(mix):
    """Loss and gradients of the first step, then metrics of an epoch."""
    settings, device = train.Config(**SETTINGS, mix=mix, positives=1), torch.device("cpu")
    sets = data.load("digits")
    parts = train.build(settings, sets, device)
    batches = data.loader(sets.train, 25, 5, train=True)
    value, _ = next(train.steps(settings, parts, batches, device, tqdm(disable=True)))
    modules = (parts.network, parts.criterion)
    gradients = [p.grad for module in modules for p in module.parameters()]
    row = train.fit(settings, sets)[1]["history"][-1]
    return {
        "value": value,
        "gradients": gradients,
        "metrics": {key: row[key] for key in ("loss", "recall_at_1")},
    }


def training_process(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=WORLD)
    torch.save({mix: trained(mix) for mix in train.MIXES}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_train_as_one_in_every_space(tmp_path):
    torch.multiprocessing.spawn(training_process, (str(tmp_path),), nprocs=WORLD)
    first, second = (
        torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(WORLD)
    )
    for mix in train.MIXES:
        alone, shared = trained(mix), first[mix]
        assert shared["value"] == pytest.approx(alone["value"], rel=1e-5)
        torch.testing.assert_close(shared["gradients"], alone["gradients"], rtol=1e-4, atol=1e-5)
        assert shared["metrics"]["loss"] == pytest.approx(alone["metrics"]["loss"], rel=0.02)
        assert shared["metrics"] == second[mix]["metrics"], "processes are replicas"


def test_a_notebook_starts_the_processes(tmp_path, monkeypatch):
    monkeypatch.setenv("DML_RESULTS", str(tmp_path))
    record = runs.execute("digits", SETTINGS)
    alone = train.fit(train.Config(**SETTINGS), data.load("digits"))[1]
    for key in ("loss", "recall_at_1"):
        assert record["history"][-1][key] == pytest.approx(alone["history"][-1][key], rel=0.02)
    assert record["config"]["processes"] == WORLD
    board = tmp_path / "runs" / record["id"] / "tensorboard"
    assert len(list(board.iterdir())) == 1, "the first process alone writes"


def test_stopped_processes_end_as_if_they_had_not_been_stopped(tmp_path, monkeypatch):
    settings, sets = train.Config(**SETTINGS | {"epochs": 2}), data.load("digits")
    _, whole = train.launch(settings, sets, tmp_path / "whole" / "checkpoint")
    save = checkpoints.save

    def once(*args):
        save(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(ChildFailedError):
        patch.setattr(checkpoints, "save", once)
        train.launch(settings, sets, tmp_path / "checkpoint")
    _, continued = train.launch(settings, sets, tmp_path / "checkpoint")
    assert continued["metrics"] == whole["metrics"]
    assert [row["loss"] for row in continued["history"]] == [r["loss"] for r in whole["history"]]


def test_more_processes_than_gpus_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    settings = train.Config(**SETTINGS | {"device": "auto"})
    with pytest.raises(ValueError, match="processes=2: this machine has 1 GPUs"):
        train.launch(settings, data.load("digits"), tmp_path / "checkpoint")


def test_a_group_of_another_size_is_refused(tmp_path):
    dist.init_process_group("gloo", f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        with pytest.raises(ValueError, match="processes=2 in a group of 1"):
            train.build(train.Config(**SETTINGS), data.load("digits"), torch.device("cpu"))
    finally:
        dist.destroy_process_group()
