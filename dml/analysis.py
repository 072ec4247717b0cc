"""What mixing asks of an embedding, and what it does to the space of embeddings."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dml.losses import Exp, GenericLoss, Log, check_batch
from dml.mixup import Metrix

# -- Positivity (book/04_positivity) --


@dataclass(frozen=True)
class Positivity:
    """What the mixed embeddings of a batch ask for at one lambda.

    measured: share of them that behave as positives of their anchor, by differentiation.
    predicted: F_lambda(threshold), the share below the threshold; NaN without one (eq-positivity).
    threshold: similarity below which a lone mixed embedding behaves as positive, or NaN.
    similarity: s(a, v) of all of them, (n,). positive: whether each behaves so, (n,) bool.
    """

    measured: float
    predicted: float
    threshold: float
    similarity: Tensor
    positive: Tensor


def positivity(
    loss: GenericLoss,
    embeddings: Tensor,
    labels: Tensor,
    lam: float,
    *,
    hardest: int | None = None,
    alone: bool = False,
) -> Positivity:
    """Does a mixture of a positive and a negative attract or repel its anchor (Metrix, section on
    positivity; book/04_positivity)?

    A mixed embedding v behaves as a positive of a if and only if the loss falls as it comes closer,
    d l~(a) / d s(a, v) <= 0. The derivative is that of the real loss, by differentiation.

    Args:
        loss: any loss of the generic form.
        embeddings, labels: a batch, (B, D) and (B,).
        lam: weight of the positive parent, in [0, 1].
        hardest: how many negatives of an anchor are mixed, the most similar; None for all.
        alone: each mixed embedding is its anchor's only candidate, for which the threshold is
            exact; else all mixed embeddings of an anchor share its loss, as in training.

    Raises:
        ValueError: a batch without any positive-negative pair; what `Metrix` raises.
    """
    check_batch(embeddings, labels)
    with torch.no_grad():
        metrix = Metrix(loss, "positive-negative", hardest)
        similarity, label, mask = metrix.candidates(embeddings, labels, lam)
    if not mask.any():
        raise ValueError("no anchor of this batch has a positive and a negative to mix")
    if alone:
        similarity, label = similarity[mask][:, None], label[mask][:, None]
        mask = torch.ones_like(label, dtype=torch.bool)
    similarity = similarity.detach().requires_grad_()
    (slope,) = torch.autograd.grad(loss.per_anchor(similarity, label, mask).sum(), similarity)
    similarity, positive = similarity.detach()[mask], slope[mask] <= 0
    border = threshold(loss, lam)
    return Positivity(
        measured=positive.double().mean().item(),
        predicted=float("nan")
        if math.isnan(border)
        else (similarity <= border).double().mean().item(),
        threshold=border,
        similarity=similarity,
        positive=positive,
    )


def threshold(loss: GenericLoss, lam: float) -> float:
    """The similarity up to which a lone mixture behaves as a positive (eq-positivity).

    For rho+ = e^(-beta (s - m+)), rho- = e^(gamma (s - m-)) and sigma(x) = c log(1 + x) with
    c+ beta = c- gamma, as in multi-similarity and Proxy Anchor, the derivative vanishes where
    lam e^(-beta (s - m+)) = (1 - lam) e^(gamma (s - m-)), that is at

        s = (ln(lam / (1 - lam)) + beta m+ + gamma m-) / (beta + gamma),

    which for m+ = m- = m is the paper's ln(lam / (1 - lam)) / (beta + gamma) + m. It is exact,
    since x / (1 + x) grows with x. NaN for a loss of another form; -inf and inf at lam = 0 and 1.
    """
    functions = (loss.rho_pos, loss.rho_neg, loss.sigma_pos, loss.sigma_neg)
    if not all(
        isinstance(f, kind) for f, kind in zip(functions, (Exp, Exp, Log, Log), strict=True)
    ):
        return float("nan")
    rho_pos, rho_neg, sigma_pos, sigma_neg = functions
    beta, gamma = -rho_pos.scale, rho_neg.scale
    balanced = math.isclose(sigma_pos.scale * beta, sigma_neg.scale * gamma)
    if not (sigma_pos.plus and sigma_neg.plus and balanced):
        return float("nan")
    if lam in (0, 1):
        return math.inf if lam else -math.inf
    odds = math.log(lam / (1 - lam))
    return (odds + beta * rho_pos.margin + gamma * rho_neg.margin) / (beta + gamma)


# -- What mixing does to the space: measures of a set of embeddings --


def alignment(embeddings: Tensor, labels: Tensor) -> float:
    """Mean |x - y|^2 over the pairs of one class; low where classes are tight (Wang and Isola,
    ICML 2020, with alpha = 2; book/08_space).

    Args:
        embeddings: (N, D), normalised here.
        labels: (N,).

    The pairs of a class need not be made: over all its ordered pairs the sum is
    2 n sum |x|^2 - 2 |sum x|^2.
    """
    x, label, counts = _by_class(embeddings, labels)
    sums = x.new_zeros(len(counts), x.shape[1]).index_add_(0, label, x)
    pairs = (counts * (counts - 1)).sum()
    total = 2 * (counts * counts).sum() - 2 * sums.square().sum()  # |x| = 1
    return (total / pairs).item()


def uniformity(embeddings: Tensor, block: int = 1 << 22) -> float:
    """log mean e^(-2 |x - y|^2) over all pairs; low where embeddings spread over the sphere (Wang
    and Isola, ICML 2020, with t = 2; book/08_space).

    Args:
        embeddings: (N, D), normalised here.
        block: similarities held at a time.
    """
    x = F.normalize(embeddings.float(), dim=1)
    n, rows = len(x), max(1, block // len(x))
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    for start in range(0, n, rows):  # e^(-2 (2 - 2 s))
        total += (x[start : start + rows] @ x.T).sub_(1).mul_(4).exp_().sum(dtype=torch.float64)
    return math.log((total.item() - n) / (n * (n - 1)))  # without the pairs of x and itself


def utilization(queries: Tensor, gallery: Tensor, block: int = 1 << 22) -> float:
    """Mean |q - x|^2 of a query to its nearest neighbour; low where the gallery, the training set,
    covers the space that the queries, the test set, lie in (Metrix; book/08_space).

    Args:
        queries, gallery: (Q, D) and (N, D), normalised here.
        block: similarities held at a time.
    """
    q, x = F.normalize(queries.float(), dim=1), F.normalize(gallery.float(), dim=1)
    side = max(1, min(2000, math.isqrt(block)))
    nearest = q.new_full((len(q),), -math.inf)
    tile = q.new_empty(side, side)
    for i in range(0, len(q), side):
        for j in range(0, len(x), side):
            a, b = q[i : i + side], x[j : j + side]
            s = torch.mm(a, b.T, out=tile[: len(a), : len(b)])
            part = nearest[i : i + side]
            torch.maximum(part, s.amax(1), out=part)
    return (2 - 2 * nearest.double()).clamp(min=0).mean().item()


def spectral_decay(embeddings: Tensor) -> float:
    """KL(U || S) of the uniform distribution U and the singular values S of the embeddings, which
    sum to 1; 0 where all directions are used alike, large where few are (Roth et al., ICML 2020).

    Args:
        embeddings: (N, D), normalised here.
    """
    s = torch.linalg.svdvals(F.normalize(embeddings.double(), dim=1))
    s = (s / s.sum()).clamp(min=torch.finfo(torch.float64).tiny)
    return (-math.log(len(s)) - s.log().mean()).item()


def intra_inter_ratio(embeddings: Tensor, labels: Tensor, block: int = 1 << 22) -> float:
    """Mean distance |x - y| within classes over the mean distance between class means; small where
    classes are tight and far apart (Roth et al., ICML 2020).

    Args:
        embeddings: (N, D), normalised here.
        labels: (N,), two classes at least.
        block: distances held at a time.
    """
    x, label, counts = _by_class(embeddings, labels)
    means = x.new_zeros(len(counts), x.shape[1]).index_add_(0, label, x) / counts[:, None]
    if len(means) < 2:
        raise ValueError("intra_inter_ratio needs two classes")
    first = counts.cumsum(0).sub(counts).long()  # where each class begins
    last = counts.cumsum(0).long()
    within = x.new_zeros(())
    rows = max(1, block // max(1, int(counts.max()) * 2))
    for start in range(0, len(x), rows):
        part, of = x[start : start + rows], label[start : start + rows]
        span = slice(int(first[of[0]]), int(last[of[-1]]))  # the classes of these rows
        within += torch.cdist(part, x[span])[of[:, None] == label[span]].sum()
    between = means.new_zeros(())
    rows = max(1, block // len(means))
    for start in range(0, len(means), rows):
        between += torch.cdist(means[start : start + rows], means).sum()
    within = within / (counts * (counts - 1)).sum()
    between = between / (len(means) * (len(means) - 1))
    return (within / between).item()


MEASURES = ("alignment", "uniformity", "utilization", "spectral_decay", "intra_inter_ratio")


def space(queries: Tensor, labels: Tensor, train: Tensor) -> dict[str, float]:
    """All measures of the space, by their names in `MEASURES`: of the queries, and for utilization
    of the queries beside the training set.

    Args:
        queries, labels: test embeddings (Q, D) and their classes (Q,).
        train: embeddings of the training set, (N, D).
    """
    values = (
        alignment(queries, labels),
        uniformity(queries),
        utilization(queries, train),
        spectral_decay(queries),
        intra_inter_ratio(queries, labels),
    )
    return dict(zip(MEASURES, values, strict=True))


def _by_class(embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Unit embeddings ordered by class, in double precision, their class from 0 on, and how many
    each class has."""
    if len(embeddings) != len(labels):
        raise ValueError(f"{len(embeddings)} embeddings but {len(labels)} labels")
    label, order = torch.unique(labels, return_inverse=True)[1].sort(stable=True)
    counts = label.bincount().double()
    if counts.max() < 2:
        raise ValueError("no class has two embeddings: there is no pair within a class")
    return F.normalize(embeddings.double(), dim=1)[order], label, counts
