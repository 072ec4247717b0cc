"""Nearest-neighbour Gaussian kernels and MbDML: classification from few labels (book/10_mbdml).

Every labelled training image is a centre c_i, a feature f(x_i) with a class y_i and a trained
weight. A feature belongs to the classes of its N nearest centres, as near as they are:

    p(y | x) = sum_{i in N(x), y_i = y} e^(w_i) k(f(x), c_i) / sum_{i in N(x)} e^(w_i) k(f(x), c_i),
    k(u, v) = exp(-|u - v|^2 / 2 sigma^2)                                            (eq-nngk)

The kernels are Meyer et al.'s (ICIP 2018); their three combinations with mixup are MbDML (Buris et
al., ICIP 2022).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCK = 1024  # queries compared with all centres at a time


def nearest(queries: Tensor, centres: Tensor, k: int, exclude: Tensor | None = None) -> Tensor:
    """Indices of each query's k nearest centres, nearest first, exact.

    By faiss where it is installed and the tensors are on the CPU, else by blocks of one product.

    Args:
        queries: (n, D).
        centres: (M, D).
        k: how many.
        exclude: (n, E) centres that are not for this query, such as its own.

    Returns:
        (n, k) int64.

    Raises:
        ValueError: more neighbours than centres.
    """
    left_out = 0 if exclude is None else exclude.shape[1]
    _check_count(k, len(centres), left_out)
    if queries.device.type == "cpu" and (faiss := _faiss()) is not None:
        index = faiss.IndexFlatL2(centres.shape[1])
        index.add(_floats(centres))
        _, found = index.search(_floats(queries), k + left_out)
        found = torch.from_numpy(found)
        if exclude is None:
            return found
        own = (found[:, :, None] == exclude[:, None]).any(2)
        return found.gather(1, own.int().argsort(1, stable=True)[:, :k])
    half_square = _half_square(centres)
    found = []
    for start in range(0, len(queries), BLOCK):
        block = slice(start, start + BLOCK)
        close = torch.addmm(-half_square, queries[block], centres.T)  # see GaussianKernels
        if exclude is not None:
            close.scatter_(1, exclude[block], -torch.inf)
        found.append(close.topk(k).indices)
    return torch.cat(found)


def _half_square(centres: Tensor) -> Tensor:
    return torch.linalg.vector_norm(centres, dim=1).square() / 2  # no squares of all are kept


def _faiss():
    try:
        import faiss
    except ImportError:
        return None
    return faiss


def _floats(x: Tensor) -> np.ndarray:
    return np.ascontiguousarray(x.detach().numpy(), dtype=np.float32)


def _check_count(k: int, centres: int, left_out: int) -> None:
    if not 1 <= k <= centres - left_out:
        raise ValueError(
            f"neighbours={k} is not in 1 to {centres - left_out}: there are {centres} centres, "
            f"{left_out} of them left out"
        )


class GaussianKernels(nn.Module):
    """The kernel classifier (eq-nngk), its neighbours searched for each feature that it is given.

    All of it is in log space, so it is exact however far the centres are. A class without a centre
    among the N has probability 0, and log 0 teaches nothing: its log is that of its strongest
    centre outside, which changes no other class's.

    Args:
        centres: (M, D), the features of the labelled images.
        centre_labels: (M,), from 0 to C - 1, each present.
        sigma: width of the kernels, in the unit of the features.
        neighbours: N.

    Attributes:
        log_weights: (M,) parameter w, 0 at the start.

    Raises:
        ValueError: sigma not above 0, more neighbours than centres, labels that do not fit.
    """

    def __init__(
        self, centres: Tensor, centre_labels: Tensor, sigma: float = 10.0, neighbours: int = 200
    ):
        super().__init__()
        if not sigma > 0:
            raise ValueError(f"sigma={sigma} must be above 0")
        if centres.ndim != 2 or centre_labels.shape != centres.shape[:1]:
            raise ValueError(
                f"centres (M, D) with labels (M,) are needed, not {tuple(centres.shape)} with "
                f"{tuple(centre_labels.shape)}"
            )
        _check_count(neighbours, len(centres), 0)
        counts = centre_labels.bincount()
        if not counts.all():
            raise ValueError(f"class {counts.argmin().item()} has no centre")
        self.sigma, self.neighbours, self.num_classes = sigma, neighbours, len(counts)
        self.register_buffer("centres", torch.empty_like(centres))
        self.register_buffer("half_square", centres.new_empty(len(centres)))  # |c|^2 / 2
        self.register_buffer("centre_labels", centre_labels.clone())
        self.refresh(centres)
        self.log_weights = nn.Parameter(self.centres.new_zeros(len(centres)))

    @torch.no_grad()
    def refresh(self, centres: Tensor) -> None:
        """Move the centres, (M, D), to where the network now puts their images; the weights
        stay."""
        self.centres.copy_(centres)
        self.half_square.copy_(_half_square(self.centres))

    def forward(
        self, features: Tensor, exclude: Tensor | None = None, neighbours: Tensor | None = None
    ) -> Tensor:
        """Log-probabilities of the classes, (B, C).

        Args:
            features: (B, D).
            exclude: (B,) or (B, E) indices of centres that are not neighbours: in training an
                image's own, which would tell its label.
            neighbours: (B, N) centres to take in place of the nearest.

        Raises:
            ValueError: more neighbours than are left.
        """
        # (|x|^2 - |x - c|^2) / 2 = x c - |c|^2 / 2: nearest is largest, and |x|^2 cancels in p.
        # One product with all centres is cheaper than fetching each feature's own N of them.
        far = torch.finfo(features.dtype).min / 4
        with torch.no_grad():
            close = torch.addmm(-self.half_square, features, self.centres.T)  # (B, M)
            if exclude is not None:
                exclude = exclude.view(len(features), -1)  # (B, E)
                _check_count(self.neighbours, len(self.centres), exclude.shape[1])
                close.scatter_(1, exclude, far)
            if neighbours is None:
                neighbours = close.topk(self.neighbours, sorted=False).indices  # (B, N)
            strength = close / self.sigma**2 + self.log_weights  # (B, M)
            strongest = _argmax_by_class(strength, self.centre_labels, self.num_classes)  # (B, C)
        chosen = torch.cat([neighbours, strongest], 1)  # (B, N + C)
        strength = Chosen.apply(features, self.centres, close, chosen) / self.sigma**2
        strength = (strength + self.log_weights[chosen]).clamp(min=far)
        inside, outside = strength.split([neighbours.shape[1], self.num_classes], 1)
        by_class, present = _logsumexp_by_class(
            inside, self.centre_labels[neighbours], self.num_classes
        )
        return torch.where(present, by_class, outside) - inside.logsumexp(1, keepdim=True)


class Chosen(torch.autograd.Function):
    """x c - |c|^2 / 2 of some centres of each feature, (B, D), (M, D), all of them (B, M), indices
    (B, K) -> (B, K). Backward goes to the features and touches those K centres only."""

    @staticmethod
    def forward(ctx, features: Tensor, centres: Tensor, close: Tensor, chosen: Tensor):
        ctx.save_for_backward(centres, chosen)
        return close.gather(1, chosen)

    @staticmethod
    def backward(ctx, grad: Tensor):
        centres, chosen = ctx.saved_tensors
        return F.embedding_bag(chosen, centres, per_sample_weights=grad, mode="sum"), *[None] * 3


def _argmax_by_class(values: Tensor, labels: Tensor, classes: int) -> Tensor:
    """The place of each class's largest value, (B, M), (M,) -> (B, C)."""
    labels = labels.expand_as(values)
    top = values.new_empty(len(values), classes).scatter_reduce(
        1, labels, values, "amax", include_self=False
    )
    place = torch.where(
        values == top.gather(1, labels), torch.arange(values.shape[1], device=values.device), -1
    )
    return place.new_zeros(len(values), classes).scatter_reduce(1, labels, place, "amax")


def _logsumexp_by_class(values: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Log of the sum of e^values with each label, (B, N), (B, N) -> (B, C), and which labels are
    there, (B, C)."""
    empty = values.new_full((len(values), classes), -torch.inf)
    top = empty.scatter_reduce(1, labels, values.detach(), "amax")  # (B, C)
    scaled = (values - top.gather(1, labels)).exp()
    sums = torch.zeros_like(empty).scatter_add(1, labels, scaled)  # (B, C), 0 or at least 1
    present = sums > 0
    return sums.where(present, 1.0).log() + top.where(present, 0.0), present


# -- Three ways to combine the kernels with mixup


@dataclass(frozen=True)
class Method:
    """b L_NNGK(x) + c L(x~): the weights of the two parts, and who classifies the mixed images."""

    b: float
    c: float
    classifier: str = "kernels"  # or "linear"


METHODS = {
    "nngk": Method(1, 0),
    "mixup": Method(0, 1, "linear"),
    "mbdml1": Method(1, 2, "linear"),
    "mbdml2": Method(0, 2),
    "mbdml3": Method(1, 2),
}


class MbDML(nn.Module):
    """NNGK, mixup and the three MbDML as one loss (eq-mbdml):

        b L(p(. | x), y) + c (lambda L(p'(. | x~), y) + (1 - lambda) L(p'(. | x~), y')),
        x~ = lambda x + (1 - lambda) x',

    where L is the negative log-likelihood, p are the kernels and p' the method's classifier of
    mixed images. As in the authors' code lambda is one for a batch, and x' the batch in another
    order. Neither parent of a mixed image is among its neighbours.

    Args:
        method: one of METHODS.
        kernels: the kernel classifier of the labelled images.
        alpha: lambda ~ Beta(alpha, alpha); 0 is lambda = 1, no mixing.
        released: compute what the authors' code does where it differs from the paper: MbDML-1's
            classifier is the first C channels of the feature in place of a linear layer, and
            neighbours are those that `refresh` found, for a mixed image those of x.
        generator: of lambda and the orders.

    Raises:
        ValueError: an unknown method, or alpha below 0.
    """

    def __init__(
        self,
        method: str,
        kernels: GaussianKernels,
        alpha: float = 1.0,
        released: bool = False,
        generator: np.random.Generator | None = None,
    ):
        super().__init__()
        if method not in METHODS:
            raise ValueError(f"method={method!r} is not one of: {', '.join(METHODS)}")
        if not alpha >= 0:
            raise ValueError(f"alpha={alpha} must not be negative")
        self.method, self.kernels, self.alpha = METHODS[method], kernels, alpha
        self.rng = np.random.default_rng() if generator is None else generator
        width, classes = kernels.centres.shape[1], kernels.num_classes
        self.linear = None
        if self.method.classifier == "linear":
            if released and width < classes:
                raise ValueError(
                    f"released: {width} channels cannot be logits of {classes} classes"
                )
            self.linear = nn.Identity() if released else nn.Linear(width, classes)
        self.found: Tensor | None = None  # of each labelled image, at the last refresh, (M, N)
        self.released = released

    def refresh(self, centres: Tensor) -> None:
        """Move the centres, (M, D); the released code looks for neighbours now and not again."""
        self.kernels.refresh(centres)
        if self.released:
            own = torch.arange(len(centres), device=centres.device)[:, None]
            self.found = nearest(centres, centres, self.kernels.neighbours, own)

    def logits(self, features: Tensor) -> Tensor:
        """What the linear layer says, (B, D) -> (B, C)."""
        return self.linear(features)[:, : self.kernels.num_classes]

    def forward(
        self, embed: Callable[[Tensor], Tensor], inputs: Tensor, labels: Tensor, own: Tensor
    ) -> Tensor:
        """The loss of a batch, a scalar.

        Args:
            embed: the network, inputs to features (B, D).
            inputs: (B, ...), what it takes.
            labels: (B,).
            own: (B,) the index of each image among the centres.
        """
        loss = inputs.new_zeros(())
        found = None if self.found is None else self.found[own]
        if self.method.b:
            log_p = self.kernels(embed(inputs), own, found)
            loss = loss + self.method.b * F.nll_loss(log_p, labels)
        if self.method.c:
            lam = self.rng.beta(self.alpha, self.alpha) if self.alpha > 0 else 1.0
            order = torch.from_numpy(self.rng.permutation(len(labels))).to(labels.device)
            mixed = embed(torch.lerp(inputs[order], inputs, lam))
            if self.linear is None:
                parents = torch.stack([own, own[order]], 1)  # (B, 2)
                log_p = self.kernels(mixed, parents if found is None else own, found)
            else:
                log_p = self.logits(mixed).log_softmax(1)
            both = F.nll_loss(log_p, labels), F.nll_loss(log_p, labels[order])
            loss = loss + self.method.c * (lam * both[0] + (1 - lam) * both[1])
        return loss
