"""ProxyGML: several proxies a class, a graph to the most similar of them, labels that flow back
(Zhu et al., NeurIPS 2020; book/11_proxygml).

With unit embeddings x_i and N unit proxies w_p of each of C classes, an example keeps its k =
ceil(r C N) most similar proxies K(i), its own class's always among them, and

    Z_ij = sum of s(x_i, w_p) over the p in K(i) of class j          (eq-propagation)
    P(j | i) = exp Z_ij / sum of exp Z_ij' over the classes j' in K(i)    (eq-masked-softmax)
    loss = mean_i -log P(y_i | i) + lambda * mean_p -log softmax_j(sum_n s(w_p, w_jn))[y_p]
                                                                     (eq-proxygml)

Nothing here is of size B x C N x C. The graph is the positions of k proxies for each example; a
class's score is a sum over them (`Propagate`); and the softmax runs over the kept proxies, each
standing for one part in as many as its class has there, so that the mask needs no matrix either.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from pytorch_metric_learning.losses import BaseMetricLossFunction
from torch import Tensor, nn

from dml.losses import as_float, check_batch, full_precision, on_device, refuse, sound
from dml.mixup import Mix, interpolate


class ProxyGML(BaseMetricLossFunction):
    """ProxyGML (eq-proxygml, book/11_proxygml), an `nn.Module` with pytorch-metric-learning's call
    shape.

    Args:
        num_classes, embedding_size: C and D.
        proxies_per_class: N.
        r: part of all C N proxies that an example keeps, in (0, 1].
        weight_lambda: of the proxies' own cross-entropy, eq-proxygml's second term.
        positive_bonus: added to the similarity of the own class's proxies where the most similar
            are chosen, and there alone. inf keeps them in the graph always, which the paper's mask
            is for; cosines differ by 2 at most, so that the released code's 1000 does the same. 1
            is the paper's formula: it loses a proxy that is less similar by more than 1 than what
            would be kept. 0 is the paper's ablation of the mask.
        masked: whether the softmax runs over the classes in the graph alone. False, the paper's
            ablation, runs it over all, with score 0 for the others.

    The proxies are a parameter (C, N, D), normalised here; they start in random directions with
    length 1. Where k < N only the k most similar proxies of the own class are kept: the loss is 0
    then, as is its gradient.

    BaseMetricLossFunction is the parent so that pytorch-metric-learning's wrappers accept the loss;
    of its own machinery nothing is used.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        proxies_per_class: int = 12,
        r: float = 0.05,
        weight_lambda: float = 0.3,
        *,
        positive_bonus: float = math.inf,
        masked: bool = True,
    ):
        super().__init__()
        shape = {
            "num_classes": num_classes,
            "embedding_size": embedding_size,
            "proxies_per_class": proxies_per_class,
        }
        for name, value in shape.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if not 0 < r <= 1:
            raise ValueError(f"r must lie in (0, 1], not {r}: it is the part of proxies kept")
        for name, value in (("weight_lambda", weight_lambda), ("positive_bonus", positive_bonus)):
            if not value >= 0:
                raise ValueError(f"{name} must not be negative, not {value}")
        self.r, self.weight_lambda = r, weight_lambda
        self.positive_bonus, self.masked = positive_bonus, masked
        # r C N may come out a hair above a whole number, as 0.07 * 100 does
        self.kept = math.ceil(round(r * num_classes * proxies_per_class, 6))  # k
        proxies = torch.randn(num_classes, proxies_per_class, embedding_size)
        self.proxies = nn.Parameter(F.normalize(proxies, dim=2))

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple=None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        """The loss of a batch, a scalar (eq-proxygml).

        Args:
            embeddings: (B, D), of any floating type; normalised here.
            labels: (B,) integers in [0, C).
            indices_tuple, ref_emb, ref_labels: pytorch-metric-learning's, refused: examples are
                compared with proxies, not with one another.

        Raises:
            ValueError: labels of another length or without a proxy, embeddings of another
                dimension, not finite, or not a matrix.
        """
        if indices_tuple is not None or ref_emb is not None or ref_labels is not None:
            raise ValueError(
                "indices_tuple, ref_emb and ref_labels are pairs of examples: this loss compares "
                "examples with proxies"
            )
        self._check(embeddings, labels)
        labels = on_device(labels, embeddings)
        return self.per_example(embeddings, labels).mean() + self.regulariser()

    def per_example(
        self, embeddings: Tensor, labels: Tensor, other: Tensor | None = None, lam=1.0
    ) -> Tensor:
        """-log P(y | x) of each example, without the regulariser, (B,).

        Args:
            embeddings: (B, D).
            labels: (B,).
            other: for mixed examples, the second parents' labels, (B,). Both classes then count as
                the own one, and the loss is lam and 1 - lam of their two cross-entropies.
            lam: the share of `labels`, a number or (B,).
        """
        classes = labels[:, None] if other is None else torch.stack([labels, other], 1)  # (B, P)
        with full_precision(embeddings):
            similarity, index = self.graph(embeddings, classes)  # (B, k)
            at = torch.cat([index // self.proxies.shape[1], classes], 1)  # (B, k + P)
            score, count = Propagate.apply(similarity, at, len(self.proxies))
            parts = [similarity.shape[1], classes.shape[1]]
            (score, own), (count, own_count) = (v.split(parts, 1) for v in (score, count))
            loss = self.log_partition(score, count)[:, None] - own  # (B, P)
            if self.masked:  # without a kept proxy of its class, no label flows back
                loss = loss.where(own_count > 0, 0.0)
            if other is None:
                return loss[:, 0]
            return lam * loss[:, 0] + (1 - lam) * loss[:, 1]

    def graph(self, embeddings: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """The edges of each example: similarities to the proxies that it keeps and their positions
        among all C N, proxy n of class c at c N + n; (B, k) both, in no order.

        Args:
            embeddings: (B, D).
            classes: whose proxies are its own, (B, P).
        """
        x = F.normalize(as_float(embeddings), dim=1)
        proxies = as_float(self.proxies).flatten(0, 1).to(x.dtype)  # (C N, D)
        each = torch.arange(self.proxies.shape[1], device=x.device)
        own = (classes[:, :, None] * len(each) + each).flatten(1)  # (B, P N)
        return MostSimilar.apply(x, proxies, own, self.kept, min(self.positive_bonus, 4.0))

    def log_partition(self, score: Tensor, count: Tensor) -> Tensor:
        """log of the sum below the line of eq-masked-softmax, (B,).

        It is taken over the kept proxies, with their classes' scores and numbers of proxies, (B, k)
        both: each stands for 1 / count of its class, so that a class counts once and one that is
        not in the graph not at all.
        """
        log_sum = torch.logsumexp(score - count.log(), dim=1)
        if self.masked:
            return log_sum
        absent = len(self.proxies) - (1 / count).sum(1).round()  # each with exp 0
        return torch.logaddexp(log_sum, absent.log())

    def regulariser(self) -> Tensor:
        """lambda times the proxies' own cross-entropy, a scalar: every proxy an example, every
        proxy kept, itself too."""
        if self.weight_lambda == 0:
            return self.proxies.new_zeros(())
        with full_precision(self.proxies):
            return self.weight_lambda * OwnClass.apply(as_float(self.proxies))

    def _check(self, embeddings: Tensor, labels: Tensor) -> None:
        check_batch(embeddings, labels)
        if embeddings.shape[1] != self.proxies.shape[2]:
            raise ValueError(
                f"embeddings have {embeddings.shape[1]} dimensions, proxies {self.proxies.shape[2]}"
            )
        if not sound(self, embeddings, labels):
            refuse(self, embeddings, labels)


class MixedProxyGML(nn.Module):
    """ProxyGML, and w times ProxyGML of mixed examples with mixed labels. Our own extension, after
    Metrix (eq-mixed): the paper has no mixing.

    Each example is mixed with the most similar examples of other classes, lam with itself. Its
    graph keeps the proxies of both classes, labels flow back from both, and the cross-entropy has
    lam and 1 - lam of them as its target.

    Args:
        loss: a `ProxyGML`.
        hardest: how many examples of other classes each is mixed with; None for all.
        alpha: lam ~ Beta(alpha, alpha), one a batch.
        weight: w.
        generator: source of lam, a `numpy.random.Generator`.
    """

    def __init__(
        self,
        loss: ProxyGML,
        hardest: int | None = 3,
        alpha: float = 2.0,
        weight: float = 0.4,
        *,
        generator: np.random.Generator | None = None,
    ):
        super().__init__()
        for name, value in (("alpha", alpha), ("hardest", hardest)):
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive, not {value}")
        if weight < 0:
            raise ValueError(f"weight must not be negative, not {weight}")
        self.loss, self.hardest, self.alpha, self.weight = loss, hardest, alpha, weight
        self.generator = np.random.default_rng() if generator is None else generator

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple=None,
        *,
        mix: Mix | None = None,
        lam: float | None = None,
    ) -> Tensor:
        """Clean loss plus w times mixed loss of a batch, a scalar.

        Args:
            embeddings, labels, indices_tuple: as for `ProxyGML.forward`.
            mix: (i, j, lam) -> embeddings of the examples i and j mixed in another space, (U, D);
                None mixes the embeddings.
            lam: what is otherwise drawn.
        """
        clean = self.loss(embeddings, labels, indices_tuple)
        labels = on_device(labels, embeddings)
        lam = float(self.generator.beta(self.alpha, self.alpha)) if lam is None else float(lam)
        if not 0 <= lam <= 1:
            raise ValueError(f"lam must lie in [0, 1], not {lam}")
        unit = F.normalize(as_float(embeddings), dim=1)
        i, j = self.parents(unit.detach(), labels)
        if not len(i):
            return clean  # one class alone has nobody to mix with
        mixed = interpolate(unit, i, j, lam) if mix is None else mix(i, j, lam)
        return clean + self.weight * self.loss.per_example(mixed, labels[i], labels[j], lam).mean()

    def parents(self, unit: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Each example and its hardest examples of other classes, positions (U,) and (U,)."""
        other = labels[:, None] != labels
        k = len(unit) if self.hardest is None else min(self.hardest, len(unit))
        similarity, j = (unit @ unit.T).masked_fill(~other, -torch.inf).topk(k, dim=1)
        i, column = (similarity > -torch.inf).nonzero(as_tuple=True)
        return i, j[i, column]


class Propagate(torch.autograd.Function):
    """Labels flow back along the edges (eq-propagation): the sum of the kept similarities of a
    class, and the number of its kept proxies, at each of the classes asked for.

    The matrix of all classes' scores, (B, C), is not kept for the backward pass.
    """

    @staticmethod
    def forward(ctx, similarity: Tensor, at: Tensor, num_classes: int):
        """similarity (B, k) of the edges; at (B, k + P), the edges' classes and then others."""
        edges = at[:, : similarity.shape[1]]
        empty = similarity.new_zeros(len(similarity), num_classes)
        count = empty.scatter_add(1, edges, torch.ones_like(similarity)).gather(1, at)
        ctx.save_for_backward(at)
        ctx.k, ctx.num_classes = similarity.shape[1], num_classes
        ctx.mark_non_differentiable(count)
        return empty.scatter_add_(1, edges, similarity).gather(1, at), count

    @staticmethod
    def backward(ctx, grad: Tensor, _):
        (at,) = ctx.saved_tensors
        by_score = grad.new_zeros(len(grad), ctx.num_classes).scatter_add_(1, at, grad)
        return by_score.gather(1, at[:, : ctx.k]), None, None


class MostSimilar(torch.autograd.Function):
    """The k most similar proxies of each example by cosine: similarities and positions, (B, k).

    Kept for the backward pass are (B, k) numbers, and no normalised copy of the proxies is made:
    at a million proxies either would be larger than all else. With s = x.w / |w|,

        ds/dw = x / |w| - s w / |w|^2.
    """

    @staticmethod
    def forward(ctx, x: Tensor, proxies: Tensor, own: Tensor, k: int, bonus: float):
        """x (B, D) of unit length; proxies (M, D); own (B, P), positions that get the bonus."""
        length = torch.linalg.vector_norm(proxies, dim=1).clamp(min=1e-12)  # (M,)
        similarity = F.linear(x, proxies).div_(length)  # (B, M)
        plain = similarity.gather(1, own)
        similarity.scatter_(1, own, plain + bonus)
        index = similarity.topk(k, dim=1, sorted=False).indices
        similarity.scatter_(1, own, plain)
        kept = similarity.gather(1, index)
        ctx.save_for_backward(x, proxies, length, kept, index)
        ctx.mark_non_differentiable(index)
        return kept, index

    @staticmethod
    def backward(ctx, grad: Tensor, _):
        x, proxies, length, kept, index = ctx.saved_tensors
        by_product = (grad / length[index]).to(x.dtype)
        dense = x.new_zeros(len(x), len(proxies)).scatter_(1, index, by_product)  # (B, M)
        grad_x = grad_proxies = None
        if ctx.needs_input_grad[0]:
            grad_x = dense @ proxies
        if ctx.needs_input_grad[1]:
            grad_proxies = dense.T @ x
            along = torch.zeros_like(length)
            along.index_add_(0, index.flatten(), (by_product * kept).flatten())
            grad_proxies.addcmul_(proxies, (along / length)[:, None], value=-1)
        return grad_x, grad_proxies, None, None, None


class OwnClass(torch.autograd.Function):
    """Mean cross-entropy of the proxies' own class scores, sum_n s(w, w_jn), with their own class,
    a scalar, in blocks of proxies.

    The gradient is computed along with the value, so that no (C N, C) matrix is ever whole: at C =
    11,318 and N = 12 it would take 6 GB.
    """

    BLOCK = 1 << 24  # scores held at a time: 64 MiB of float32

    @staticmethod
    def forward(ctx, proxies: Tensor) -> Tensor:
        """proxies (C, N, D), of any length."""
        classes, each, _ = proxies.shape
        length = torch.linalg.vector_norm(proxies, dim=2, keepdim=True).clamp_(min=1e-12)
        unit = proxies / length
        # s(w, w_j1) + s(w, w_j2) + ... is one product, with the sum of the class's proxies
        sums = unit.sum(1)  # (C, D)
        value, grad = proxies.new_zeros(()), torch.empty_like(unit)  # by the unit proxies
        grad_sums = torch.zeros_like(sums)
        rows = max(1, OwnClass.BLOCK // (classes * each))  # classes of a block
        for start in range(0, classes, rows):
            block = unit[start : start + rows].flatten(0, 1)  # (b, D)
            label = torch.arange(len(block), device=block.device) // each + start
            score = F.linear(block, sums)  # (b, C)
            score -= torch.logsumexp(score, dim=1, keepdim=True)
            value -= score.gather(1, label[:, None]).sum()
            score.exp_()
            score.scatter_add_(1, label[:, None], score.new_full((len(block), 1), -1.0))
            torch.mm(score, sums, out=grad[start : start + rows].view_as(block))
            grad_sums.addmm_(score.T, block)
        grad += grad_sums[:, None]
        # through the normalisation: only what is at right angles to a proxy turns it
        along = torch.linalg.vecdot(grad, unit)[:, :, None]
        grad.addcmul_(unit, along, value=-1).div_(length * (classes * each))
        ctx.save_for_backward(grad)
        return value / (classes * each)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad * ctx.saved_tensors[0]
