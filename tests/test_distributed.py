"""Several processes see one batch: the library's wrapper gathers, our losses take what it gives."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper

from dml import losses, mixup

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
