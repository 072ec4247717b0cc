"""What mixing asks of an embedding, and what it does to the space of embeddings."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
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
