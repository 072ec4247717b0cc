"""Metrix: mixup of examples and labels for any loss of the generic form (Venkataramanan et al.,
ICLR 2022).

A candidate v of an anchor a is mixed from two parents, v = mix(u, u') with lambda ~ Beta(alpha,
alpha), its label from theirs with the same lambda, and the loss is the generic one over mixed
candidates (book/03_interpolating_labels):

    l~(a) = tau( sigma+( sum_v y_v rho+(s(a, v)) )
               + sigma-( sum_v (1 - y_v) rho-(s(a, v)) ) )                             (eq-mixed)
    total = mean_a l(a) + w mean_a l~(a)                                               (eq-total)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from pytorch_metric_learning.losses import BaseMetricLossFunction
from torch import Tensor

from dml.losses import (
    Comparison,
    GenericLoss,
    Gram,
    Unit,
    as_float,
    check_batch,
    full_precision,
    on_device,
    refuse,
    sound,
)

PAIRS = ("positive-negative", "anchor-negative", "positive-positive", "negative-negative")

# (i, j, lam) -> the examples i and j of the batch, mixed with lam and embedded, (U, D)
Mix = Callable[[Tensor, Tensor, "float | Tensor"], Tensor]


def interpolate(x: Tensor, i: Tensor, j: Tensor, lam: float | Tensor) -> Tensor:
    """lam x_i + (1 - lam) x_j for U pairs of the first dimension, with one lam or U of them, (U,
    ...); eq-mix."""
    if isinstance(lam, Tensor):
        lam = lam.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
    rows = x.flatten(1)
    # backward, embedding adds up in a fixed order; x[i] does not where there are several threads
    x_i, x_j = (F.embedding(index, rows).view(-1, *x.shape[1:]) for index in (i, j))
    return torch.lerp(x_j, x_i, lam)


def mixed_similarity(s_i: Tensor, s_j: Tensor, s_ij: Tensor, lam: float | Tensor) -> Tensor:
    """s(a, mix(x_i, x_j)) from three similarities of unit vectors, without the mixed vector
    (eq-gram).

    A mixed embedding is normalised again; its length follows from s_ij = s(x_i, x_j) alone, since
    |lam x_i + (1 - lam) x_j|^2 = lam^2 + (1 - lam)^2 + 2 lam (1 - lam) s_ij. All arguments of one
    shape, or numbers.
    """
    square = (2 * lam * (1 - lam)) * s_ij + (lam**2 + (1 - lam) ** 2)
    s = torch.lerp(s_j, s_i, lam) if isinstance(s_i, Tensor) else lam * s_i + (1 - lam) * s_j
    # two opposite parents mixed half and half have no direction: similarity 0 to everything
    return s * square.clamp(min=1e-12).rsqrt()


@dataclass
class Parents:
    """The mixed candidates V(a) of A anchors, each by its two parents.

    i, j: positions among the candidates, lam goes with i, (A, M). `i` is None where the anchor
    itself is the first parent. label_i, label_j: 1 for a positive parent, 0 for a negative. mask:
    whether there is such a pair, (A, M) bool.
    grid: where every one of P first parents meets every one of k second parents, these, (A, P) and
        (A, k); M = P k.
    """

    i: Tensor | None
    j: Tensor
    label_i: float
    label_j: float
    mask: Tensor
    grid: tuple[Tensor, Tensor] | None = None


class Metrix(BaseMetricLossFunction):
    """Metrix (eq-total): a loss of the generic form, and w times the same loss over mixed
    candidates.

    Args:
        loss: any `GenericLoss`, a reader's own included.
        pairs: which parents are mixed, of `PAIRS`: a positive and a negative of the anchor, the
            anchor and a negative, two positives, two negatives. Two of a kind are taken once, lam
            with the one that comes first in the batch.
        hardest: how many negatives of an anchor take part, the most similar ones; None for all.
        positives: how many positives of an anchor take part, drawn at random; None for all. In
            input space every mixed pair is one more image to run, which this bounds.
        alpha: lam ~ Beta(alpha, alpha).
        weight: w of eq-total.
        draw: "one" kind of pair for each iteration, or "all" of them at once.
        lam_per: one lam for a "batch", or one for a "pair" of parents.
        generator: source of all randomness, a `numpy.random.Generator`; its state is part of a
            checkpoint.
    """

    def __init__(
        self,
        loss: GenericLoss,
        pairs: str | Sequence[str] = ("positive-negative", "anchor-negative"),
        hardest: int | None = 3,
        alpha: float = 2.0,
        weight: float = 0.4,
        *,
        positives: int | None = None,
        draw: str = "one",
        lam_per: str = "batch",
        generator: np.random.Generator | None = None,
    ):
        super().__init__()
        if not isinstance(loss, GenericLoss):
            raise TypeError(f"loss must be a dml.losses.GenericLoss, not {type(loss).__name__}")
        self.pairs = _kinds(pairs)
        for name, value in (("alpha", alpha), ("hardest", hardest), ("positives", positives)):
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive, not {value}")
        if weight < 0:
            raise ValueError(f"weight must not be negative, not {weight}")
        for name, value, valid in (
            ("draw", draw, ("one", "all")),
            ("lam_per", lam_per, ("batch", "pair")),
        ):
            if value not in valid:
                raise ValueError(f"{name}={value!r} is not one of {', '.join(valid)}")
        self.loss, self.hardest, self.positives = loss, hardest, positives
        self.alpha, self.weight, self.draw, self.lam_per = alpha, weight, draw, lam_per
        self.generator = np.random.default_rng() if generator is None else generator

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple=None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        mix: Mix | None = None,
        lam: float | Tensor | None = None,
        pairs: str | Sequence[str] | None = None,
    ) -> Tensor:
        """Clean loss plus w times mixed loss of a batch, a scalar (eq-total).

        Args:
            embeddings, labels, indices_tuple, ref_emb, ref_labels: as for `GenericLoss.forward`.
                Parents are taken from the same candidates: those that a miner keeps, or those of a
                memory.
            mix: (i, j, lam) -> embeddings of the examples i and j mixed in another space than the
                embeddings', (U, D); i and j are positions in the batch, (U,), lam a number or (U,).
                None: embeddings are mixed.
            lam, pairs: what is otherwise drawn. lam is a number or a matrix with lam[i, j] for the
                parents i and j.

        Raises:
            ValueError: as `GenericLoss.forward`; an unknown kind of pair; lam outside [0, 1].
        """
        check_batch(embeddings, labels, ref_emb, ref_labels)
        if mix is not None and ref_emb is not None:
            raise ValueError("mix= mixes examples of the batch: it does not go with ref_emb")
        with full_precision(embeddings):
            labels, ref_labels = on_device(labels, embeddings), on_device(ref_labels, embeddings)
            fine = sound(self.loss, embeddings, labels)
            clean = self.loss.compare(embeddings, labels, indices_tuple, ref_emb, ref_labels)
            total = self.loss.reduce(clean.similarity, clean.label, clean.mask, clean.present)
            kinds = self._draw_kinds() if pairs is None else _kinds(pairs)
            lam = self._draw_lam(clean) if lam is None else check_lam(lam)
        instead = mix is not None and self.loss.candidate == "proxy"
        compared = Comparison(clean.anchors, labels, clean.anchors, labels) if instead else clean
        parents = self.parents(compared, kinds, fine)
        if parents is None:
            refuse(self.loss, embeddings, labels)
            return total  # finite numbers whose sum is not
        rows, families = parents
        if instead:
            candidates = self._mixed_anchors(clean, rows, families, mix, lam)
        else:
            candidates = self._mixed_candidates(clean, rows, families, mix, lam)
        with full_precision(total):
            return total + self.weight * self.loss.reduce(*candidates)

    def candidates(
        self, embeddings: Tensor, labels: Tensor, lam: float | Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """V(a) of a batch, all kinds of `pairs` at once, mixed as embeddings: for analyses.

        Returns:
            similarity, label and mask, (A', M) each, for the anchors that have any parents.
        """
        clean = self.loss.compare(embeddings, labels)
        return self._mixed_candidates(clean, *self.parents(clean, self.pairs), None, check_lam(lam))

    # -- what is random

    def _draw_kinds(self) -> tuple[str, ...]:
        if self.draw == "all":
            return self.pairs
        return (self.pairs[self.generator.integers(len(self.pairs))],)

    def _draw_lam(self, clean: Comparison) -> float | Tensor:
        if self.lam_per == "batch":
            return float(self.generator.beta(self.alpha, self.alpha))
        a, n = clean.similarity.shape
        drawn = self.generator.beta(self.alpha, self.alpha, size=(max(a, n), max(a, n)))
        return torch.from_numpy(drawn).to(clean.similarity)

    # -- M(a): who is mixed with whom

    def parents(
        self, pairs: Comparison, kinds: Sequence[str], fine: Tensor | None = None
    ) -> tuple[Tensor, list[Parents]] | None:
        """The anchors that may have parents of the drawn kinds, (A',), and their mixed candidates,
        a family a kind.

        The one look at the device of a step is here: how many positives each anchor has, and
        whether the batch is `fine` (None if it is not).
        """
        with torch.no_grad():
            fine = pairs.mask.new_ones(()) if fine is None else fine
            positive = pairs.label & pairs.mask
            negative = pairs.mask & ~pairs.label
            counts = positive.sum(1, dtype=torch.int32)  # in 64 bits it is slow on a CPU
            *counts, fine = torch.cat([counts, fine[None]]).tolist()
            if not fine:
                return None
            rows = torch.arange(len(counts), device=positive.device)
            similarity = pairs.similarity.detach()
            needed = not any(kind.startswith(("anchor", "negative")) for kind in kinds)
            if needed and 0 in counts:  # those without a positive have none to give
                rows = torch.tensor([row for row in range(len(counts)) if counts[row]])
                rows = rows.to(positive.device, torch.long)
                positive, negative, similarity = positive[rows], negative[rows], similarity[rows]
            p, p_mask = self._positives(positive, max(counts, default=0))
            columns = similarity.shape[1]
            k = columns if self.hardest is None else min(self.hardest, columns)
            similarity = similarity.masked_fill(~negative, -torch.inf)
            hard, q = similarity.topk(k, dim=1, sorted=False)  # (A', k)
            return rows, [_BUILD[kind](p, p_mask, q, hard > -torch.inf) for kind in kinds]

    def _positives(self, positive: Tensor, most: int) -> tuple[Tensor, Tensor]:
        """The positives of each anchor, first to last, in `most` columns: positions and mask, (A',
        P)."""
        if self.positives is not None:
            most = min(most, self.positives)
            noise = torch.from_numpy(self.generator.random(positive.shape)).to(positive.device)
            order = positive + noise
        else:  # the earlier in the batch, the larger
            columns = positive.shape[1]
            order = positive * torch.arange(
                columns, 0, -1, dtype=torch.int32, device=positive.device
            )
        value, index = order.topk(most, dim=1)
        if self.positives is not None:
            index, by = index.sort(dim=1)
            value = value.gather(1, by)
        return index, value >= 1

    # -- l~ --

    def _mixed_candidates(
        self, clean: Comparison, rows: Tensor, families, mix: Mix | None, lam
    ) -> tuple[Tensor, Tensor, Tensor]:
        """V(a): similarity, label and mask of the mixed candidates of each anchor, (A', M)."""
        similarity, label = [], []
        for family in families:
            # a proxy is an embedding and has no image: with it, embeddings are mixed in any space
            from_proxy = family.i is None and self.loss.anchor == "proxy"
            lam_ = _of_pairs(lam, rows, family)
            if mix is None or from_proxy:
                with full_precision(rows):
                    s = self._from_gram(clean, rows, family, lam_)
            else:
                s = self._from_mix(clean, rows, family, lam, mix)
            similarity.append(s)
            y = lam_ * family.label_i + (1 - lam_) * family.label_j
            label.append(torch.as_tensor(y, dtype=s.dtype, device=s.device).expand_as(s))
        mask = [family.mask for family in families]
        return _side_by_side(similarity), _side_by_side(label), _side_by_side(mask)

    def _from_gram(self, clean: Comparison, rows: Tensor, family: Parents, lam) -> Tensor:
        """s(a, v) of mixed embeddings from the similarities that the clean loss has, (A', M);
        eq-gram."""
        s = clean.similarity
        if len(rows) < len(s):
            s = F.embedding(rows, s)
        s_j = s.gather(1, family.j)
        if family.i is None:
            return mixed_similarity(1.0, s_j, s_j, lam)
        s_ij = _between_parents(clean, family)
        return mixed_similarity(s.gather(1, family.i), s_j, s_ij, lam)

    def _from_mix(self, clean: Comparison, rows: Tensor, family: Parents, lam, mix: Mix) -> Tensor:
        """s(a, v) of examples mixed in another space, each pair once however many anchors use it,
        (A', M)."""
        i = rows[:, None].expand_as(family.j) if family.i is None else family.i
        size = len(clean.candidates)
        key, where = (i * size + family.j)[family.mask].unique(return_inverse=True)  # (U,)
        if not len(key):
            return clean.similarity.new_zeros(family.j.shape) * clean.similarity.sum()
        i, j = key // size, key % size
        mixed = mix(i, j, lam if isinstance(lam, float) else lam[i, j])
        with full_precision(mixed):
            mixed = Unit.apply(as_float(mixed)).to(clean.anchors.dtype)
            s = F.embedding(rows, clean.anchors) @ mixed.T  # (A', U)
            index = torch.zeros_like(family.j).masked_scatter(family.mask, where)
            return s.gather(1, index)

    def _mixed_anchors(
        self, clean: Comparison, rows: Tensor, families, mix: Mix, lam
    ) -> tuple[Tensor, Tensor, Tensor]:
        """V for proxies as candidates and mixing in another space: a proxy has no image, so the
        example is mixed.

        Parents are those of `families` among the examples. The mixed example takes the anchor's
        place, its label to the proxies mixed from its parents'; s(a, v) is symmetric.
        """
        size = len(clean.anchors)
        first = [rows[:, None].expand_as(f.j) if f.i is None else f.i for f in families]
        key = torch.cat(
            [(i * size + f.j)[f.mask] for i, f in zip(first, families, strict=True)]
        ).unique()
        i, j = key // size, key % size
        lam = lam if isinstance(lam, float) else lam[i, j]
        mixed = mix(i, j, lam) if len(key) else clean.anchors[:0]
        with full_precision(mixed):
            mixed = Unit.apply(as_float(mixed)).to(clean.candidates.dtype)
            similarity = mixed @ clean.candidates.T  # (U, C)
            label = interpolate(clean.label.to(similarity.dtype), i, j, lam)
            return similarity, label, torch.ones_like(label, dtype=torch.bool)


def _positive_negative(p, p_mask, q, q_mask) -> Parents:
    """Each positive with each of the hardest negatives, label lam."""
    (a, n), k = p.shape, q.shape[1]
    i = p[:, :, None].expand(a, n, k).reshape(a, n * k)
    j = q[:, None, :].expand(a, n, k).reshape(a, n * k)
    mask = (p_mask[:, :, None] & q_mask[:, None, :]).reshape(a, n * k)
    return Parents(i, j, 1.0, 0.0, mask, grid=(p, q))


def _anchor_negative(p, p_mask, q, q_mask) -> Parents:
    """The anchor with each of the hardest negatives, label lam; s(a, a) = 1."""
    return Parents(None, q, 1.0, 0.0, q_mask)


def _positive_positive(p, p_mask, q, q_mask) -> Parents:
    """Two positives, the earlier with lam; label 1."""
    first, second = torch.triu_indices(p.shape[1], p.shape[1], 1, device=p.device)
    return Parents(p[:, first], p[:, second], 1.0, 1.0, p_mask[:, first] & p_mask[:, second])


def _negative_negative(p, p_mask, q, q_mask) -> Parents:
    """Two of the hardest negatives, the earlier with lam; label 0."""
    q, by = q.sort(dim=1)
    q_mask = q_mask.gather(1, by)
    first, second = torch.triu_indices(q.shape[1], q.shape[1], 1, device=q.device)
    return Parents(q[:, first], q[:, second], 0.0, 0.0, q_mask[:, first] & q_mask[:, second])


_BUILD = dict(
    zip(
        PAIRS,
        (_positive_negative, _anchor_negative, _positive_positive, _negative_negative),
        strict=True,
    )
)


def _between_parents(clean: Comparison, family: Parents) -> Tensor:
    """s(x_i, x_j) of the parents, (A', M): from the Gram matrix where there is one or it is cheap,
    else pair by pair."""
    x, n = clean.candidates, len(clean.candidates)
    gathered = (
        family.i.numel() if family.grid is None else sum(index.numel() for index in family.grid)
    )
    # an entry of the product costs about 1/64 of a gathered vector
    if clean.among_themselves or n * n <= 64 * gathered:
        gram = clean.similarity if clean.among_themselves else Gram.apply(x)
        return gram.reshape(-1).gather(0, (family.i * n + family.j).reshape(-1)).view_as(family.i)
    if family.grid is not None:
        first, second = (F.embedding(index, x) for index in family.grid)
        return (first @ second.mT).reshape(family.i.shape)  # (A', P, D) (A', D, k)
    return (F.embedding(family.i, x) * F.embedding(family.j, x)).sum(-1)


def _side_by_side(parts: list[Tensor]) -> Tensor:
    """The columns of all families; a single one's as they are."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _of_pairs(lam, rows: Tensor, family: Parents):
    """lam of each mixed candidate: the number itself, or lam[i, j], (A', M)."""
    if isinstance(lam, float):
        return lam
    return lam[rows[:, None] if family.i is None else family.i, family.j]


def _kinds(pairs: str | Sequence[str]) -> tuple[str, ...]:
    pairs = (pairs,) if isinstance(pairs, str) else tuple(pairs)
    unknown = [kind for kind in pairs if kind not in PAIRS]
    if unknown or not pairs:
        raise ValueError(
            f"pairs: {', '.join(map(repr, unknown)) or 'none given'}; valid are {', '.join(PAIRS)}"
        )
    return pairs


def check_lam(lam: float | Tensor) -> float | Tensor:
    """Refuse a number outside [0, 1]; a matrix of them is taken as it is."""
    if isinstance(lam, Tensor):
        return lam
    if not 0 <= lam <= 1:
        raise ValueError(f"lam must lie in [0, 1], not {lam}")
    return float(lam)
