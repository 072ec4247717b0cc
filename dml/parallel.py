"""A batch that passes the backbone in parts, one after the other or one a process, and a loss that
sees the whole of it (book/06_training)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed


def in_parts(features: Callable[[Tensor], Tensor], size: int) -> Callable[[Tensor], Tensor]:
    """`features` of a batch, `size` images at a time, in the memory of one part.

    A sum of gradients over parts of the batch (gradient accumulation) would change what is learnt:
    a metric-learning loss compares every image with every other. Here the loss sees the whole
    batch. Forward keeps the feature maps alone; backward runs each part again and goes through it,
    one after the other, as gradient caching (Gao et al., 2021) does, for one more forward pass.
    Mixed images pass in parts as well.

    Args:
        features: (B, C, H, W) -> (B, F, h, w), each image by itself: batch norm must be frozen.
        size: images of a part.
    """

    def parts(inputs: Tensor) -> Tensor:
        return torch.cat(
            [recomputed(features, part, use_reentrant=False) for part in inputs.split(size)]
        )

    return parts


class Gather(torch.autograd.Function):
    """Rows of all processes, (b, ...) -> (b * processes, ...), in the order of their ranks.

    Every process computes the same loss of all rows, so the gradient of its own rows is complete.
    It is multiplied by the number of processes, by which `average_gradients` divides.
    """

    @staticmethod
    def forward(ctx, rows: Tensor) -> Tensor:
        gathered = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, rows)
        return torch.cat(gathered)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad.chunk(dist.get_world_size())[dist.get_rank()] * dist.get_world_size()


def in_processes(features: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """`features` of a batch, of which each process of torch.distributed takes an equal share.

    Every process is a replica: it has the whole batch, draws the same lambda and computes the whole
    loss; the backbone, which costs most, is divided. Mixed images are divided as well. So a run
    learns the same with any number of processes.

    Args:
        features: (B, C, H, W) -> (B, F, h, w), each image by itself: batch norm must be frozen.
    """

    def shares(inputs: Tensor) -> Tensor:
        size = math.ceil(len(inputs) / dist.get_world_size())
        mine = torch.arange(dist.get_rank() * size, (dist.get_rank() + 1) * size)
        mine = mine.clamp(max=len(inputs) - 1).to(inputs.device)  # the last share may be short
        return Gather.apply(features(inputs[mine]).contiguous())[: len(inputs)]

    return shares


def average_gradients(*modules: nn.Module) -> None:
    """The mean over processes of every gradient, in place: see `Gather`."""
    for parameter in (p for module in modules for p in module.parameters() if p.grad is not None):
        dist.all_reduce(parameter.grad)
        parameter.grad /= dist.get_world_size()


def is_first() -> bool:
    """Whether this process is the one that writes: the only one, or the first of several."""
    return not dist.is_initialized() or dist.get_rank() == 0
