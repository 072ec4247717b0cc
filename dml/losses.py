"""The generic loss of metric learning and the losses that are its special cases.

For an anchor a and candidates x with label y (1 positive, 0 negative) and similarity s = s(a, x),

    l(a) = tau( sigma+( sum_x y rho+(s) ) + sigma-( sum_x (1 - y) rho-(s) ) )        (eq-generic)

Derived in the chapter "generic loss" (book/02_generic_loss); the form is Metrix's (Venkataramanan
et al., ICLR 2022). A label between 0 and 1 is as good as a hard one, which is all that mixup needs
(`dml.mixup`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from pytorch_metric_learning.losses import (
    BaseMetricLossFunction,
    CrossBatchMemory,
    SoftTripleLoss,
)
from pytorch_metric_learning.regularizers import SparseCentersRegularizer
from pytorch_metric_learning.utils import loss_and_miner_utils as lmu
from torch import Tensor
from torch.autograd.function import once_differentiable

Function = Callable[[Tensor], Tensor]


def identity(x: Tensor) -> Tensor:
    """x, the tau and sigma of most losses."""
    return x


class Exp:
    """rho(s) = exp(scale (s - margin)). It knows its exponent, so that a log of its sum never
    overflows."""

    def __init__(self, scale: float, margin: float = 0.0):
        self.scale, self.margin = scale, margin

    def exponent(self, similarity: Tensor) -> Tensor:
        return self.scale * similarity - self.scale * self.margin

    def __call__(self, similarity: Tensor) -> Tensor:
        return self.exponent(similarity).exp()


class Log:
    """sigma(x) = scale log(x + plus), plus 0 or 1; of a sum of `Exp` it is taken in log space."""

    def __init__(self, scale: float = 1.0, plus: int = 0):
        self.scale, self.plus = scale, plus

    def of_log(self, log_x: Tensor) -> Tensor:
        """sigma(x), given log x: log(1 + e^z) is softplus(z)."""
        return self.scale * (F.softplus(log_x) if self.plus else log_x)

    def __call__(self, x: Tensor) -> Tensor:
        return self.scale * (x + self.plus).log()


def weighted_sum(rho: Function, sigma: Function, similarity: Tensor, weight: Tensor) -> Tensor:
    """sigma( sum_x weight rho(s) ), one side of eq-generic, (A, N), (A, N) -> (A,).

    The log of a sum of exponentials is `logsumexp` with log(weight) added to the exponent, finite
    in any precision. The log of an empty sum is left out: it counts 0 and has no gradient.
    """
    if isinstance(rho, Exp) and isinstance(sigma, Log):
        # -inf would give 0 * nan in the backward pass of an anchor without any such candidate
        log_weight = weight.log().clamp(min=torch.finfo(weight.dtype).min / 4)  # (A, N)
        value = sigma.of_log(torch.logsumexp(rho.exponent(similarity) + log_weight, dim=1))
        return value if sigma.plus else value.where(weight.sum(1) > 0, 0.0)
    return sigma((weight * rho(similarity)).sum(1))


# How a batch becomes one number is part of a loss's definition. Each takes (loss, similarity,
# positive, negative) with the weights y and 1 - y of the candidates, (A, N), 0 where a candidate
# does not count, and the anchors that count, (A,).


def _mean(values: Tensor, counts: Tensor) -> Tensor:
    """Mean of the values that count; 0, with a gradient, where none does."""
    return (values * counts).sum() / counts.sum().clamp(min=1)


def over_anchors(loss, similarity, positive, negative, present):
    """eq-generic: mean over the anchors that have any candidate."""
    return _mean(loss.combine(similarity, positive, negative), present)


def over_positive_anchors(loss, similarity, positive, negative, present):
    """Mean over the anchors that have a positive, for losses that are undefined without one
    (NCA)."""
    return _mean(loss.combine(similarity, positive, negative), positive.sum(1) > 0)


def over_nonzero_pairs(loss, similarity, positive, negative, present):
    """Positive and negative pairs apart, each averaged over its pairs that are not zero, as
    pytorch-metric-learning's contrastive loss and Metrix's code have it; for losses whose tau and
    sigma are the identity."""
    pairs = (positive * loss.rho_pos(similarity), negative * loss.rho_neg(similarity))
    return sum(pair.sum() / pair.count_nonzero().clamp(min=1) for pair in pairs)


def over_pairs(loss, similarity, positive, negative, present):
    """Positive and negative pairs apart, each averaged over all of its pairs (by weight)."""
    return sum(
        (weight * rho(similarity)).sum() / weight.sum().clamp(min=1)
        for rho, weight in ((loss.rho_pos, positive), (loss.rho_neg, negative))
    )


def over_proxies(loss, similarity, positive, negative, present):
    """Proxy Anchor's: the positive part is averaged over the proxies that have a positive, the
    negative over all."""
    pos, neg = loss.parts(similarity, positive, negative)
    return _mean(pos, positive.sum(1) > 0) + _mean(neg, present)


REDUCTIONS = {
    "anchors": over_anchors,
    "positive_anchors": over_positive_anchors,
    "pairs": over_pairs,
    "nonzero_pairs": over_nonzero_pairs,
    "proxies": over_proxies,
}


class GenericLoss(BaseMetricLossFunction):
    """Any loss of the form eq-generic (book/02_generic_loss), an `nn.Module` with
    pytorch-metric-learning's call shape.

    Args:
        rho_pos, rho_neg: functions of the similarity of positives and of negatives, elementwise.
        sigma_pos, sigma_neg: functions of the weighted sums over candidates, (A,) -> (A,).
        tau: function of the sum of both, (A,) -> (A,).
        anchor, candidate: "example" or "proxy", what stands on either side of s(a, x).
        num_classes, embedding_size: shape of the trainable proxies, where there are any (one a
            class).
        denominator: "negatives" (eq-generic) or "all": whether the second sum runs over the
            negatives or over all candidates, as in the softmax form of NCA.
        reduction: one of `REDUCTIONS`.

    Any callable will do for the functions; where rho is an `Exp` and sigma a `Log` the sum is taken
    in log space. Embeddings of half precision are computed in float32. BaseMetricLossFunction is
    the parent so that pytorch-metric-learning's wrappers accept the loss; of its own machinery
    nothing is used.
    """

    def __init__(
        self,
        rho_pos: Function,
        rho_neg: Function,
        sigma_pos: Function = identity,
        sigma_neg: Function = identity,
        tau: Function = identity,
        *,
        anchor: str = "example",
        candidate: str = "example",
        num_classes: int | None = None,
        embedding_size: int | None = None,
        denominator: str = "negatives",
        reduction: str = "anchors",
    ):
        super().__init__()
        _one_of("anchor", anchor, ("example", "proxy"))
        _one_of("candidate", candidate, ("example", "proxy"))
        _one_of("denominator", denominator, ("negatives", "all"))
        _one_of("reduction", reduction, REDUCTIONS)
        if anchor == candidate == "proxy":
            raise ValueError(
                "anchor and candidate are both 'proxy': no example would be compared with anything"
            )
        if (
            reduction in ("pairs", "nonzero_pairs")
            and not sigma_pos is sigma_neg is tau is identity
        ):
            raise ValueError(
                f"reduction={reduction!r} averages pairs: sigma and tau must be the identity"
            )
        if reduction == "proxies" and tau is not identity:
            raise ValueError(
                "reduction='proxies' averages the two parts apart: tau must be the identity"
            )
        self.rho_pos, self.rho_neg = rho_pos, rho_neg
        self.sigma_pos, self.sigma_neg, self.tau = sigma_pos, sigma_neg, tau
        self.anchor, self.candidate = anchor, candidate
        self.denominator, self.reduction = denominator, reduction
        if "proxy" in (anchor, candidate):
            if num_classes is None or embedding_size is None:
                raise ValueError("a loss with proxies needs num_classes and embedding_size")
            self.proxies = torch.nn.Parameter(torch.empty(num_classes, embedding_size))
            # as Proxy Anchor's authors do
            torch.nn.init.kaiming_normal_(self.proxies, mode="fan_out")

    # -- eq-generic, from the inside out

    def parts(
        self, similarity: Tensor, positive: Tensor, negative: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The two sides sigma+(...), sigma-(...) of eq-generic for weights y and 1 - y, (A, N) each
        -> (A,), (A,)."""
        if self.denominator == "all":
            negative = negative + positive
        return (
            weighted_sum(self.rho_pos, self.sigma_pos, similarity, positive),
            weighted_sum(self.rho_neg, self.sigma_neg, similarity, negative),
        )

    def combine(self, similarity: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        """l(a) for weights y and 1 - y, (A, N) each -> (A,)."""
        pos, neg = self.parts(similarity, positive, negative)
        return self.tau(pos + neg)

    def per_anchor(self, similarity: Tensor, label: Tensor, mask: Tensor) -> Tensor:
        """l(a) of eq-generic for each anchor, unreduced.

        Args:
            similarity: s(a, x) of A anchors to N candidates, (A, N).
            label: y, 1 for a positive, 0 for a negative, between for a mixed candidate, (A, N).
            mask: whether the candidate counts for this anchor (an anchor is never its own
                candidate), (A, N) bool.

        Returns:
            (A,)
        """
        positive, negative = weights(similarity, label, mask)
        return self.combine(similarity, positive, negative)

    def reduce(
        self, similarity: Tensor, label: Tensor, mask: Tensor, present: Tensor | None = None
    ) -> Tensor:
        """The batch's loss, a scalar: `per_anchor` reduced by `reduction`; `present` (A,) are the
        anchors of the mean, those with any candidate unless given."""
        positive, negative = weights(similarity, label, mask)
        present = has_any(mask) if present is None else present
        return REDUCTIONS[self.reduction](self, similarity, positive, negative, present)

    # -- from embeddings to similarities

    def compare(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: tuple[Tensor, ...] | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Comparison:
        """Who is compared with whom: unit anchors and candidates, their similarities, labels and
        mask."""
        if ref_emb is not None and "proxy" in (self.anchor, self.candidate):
            raise ValueError(
                "ref_emb: this loss compares examples with proxies, not with other examples"
            )
        examples = Unit.apply(as_float(embeddings))  # (B, D)
        anchors, anchor_labels = candidates, candidate_labels = examples, labels
        if hasattr(self, "proxies"):
            proxies, classes = self._unit_proxies(examples, labels)
            if self.anchor == "proxy":
                anchors, anchor_labels = proxies, classes
            else:
                candidates, candidate_labels = proxies, classes
        elif ref_emb is not None:
            candidates, candidate_labels = Unit.apply(as_float(ref_emb)), ref_labels
        comparison = Comparison(anchors, anchor_labels, candidates, candidate_labels)
        if indices_tuple is not None:
            comparison.keep(indices_tuple)
        return comparison

    def _unit_proxies(self, examples: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if examples.shape[1] != self.proxies.shape[1]:
            raise ValueError(
                f"embeddings have {examples.shape[1]} dimensions, proxies {self.proxies.shape[1]}"
            )
        proxies = Unit.apply(self.proxies.to(examples.dtype))  # (C, D)
        return proxies, torch.arange(len(proxies), device=labels.device)

    def forward(
        self, embeddings, labels, indices_tuple=None, ref_emb=None, ref_labels=None
    ) -> Tensor:
        """The clean loss of a batch, a scalar (eq-generic, reduced).

        Args:
            embeddings: (B, D), of any floating type; normalised here.
            labels: (B,) integers; for a loss with proxies in [0, num_classes).
            indices_tuple: pairs or triplets from a miner of pytorch-metric-learning: only these are
                compared.
            ref_emb, ref_labels: candidates other than the batch itself, (N, D) and (N,).

        Raises:
            ValueError: labels of another length or without a proxy, embeddings that are not finite
                or not a matrix.
        """
        check_batch(embeddings, labels, ref_emb, ref_labels)
        if not sound(self, embeddings, labels):
            refuse(self, embeddings, labels)
        with full_precision(embeddings):
            labels, ref_labels = on_device(labels, embeddings), on_device(ref_labels, embeddings)
            pairs = self.compare(embeddings, labels, indices_tuple, ref_emb, ref_labels)
            return self.reduce(pairs.similarity, pairs.label, pairs.mask, pairs.present)


# pytorch-metric-learning's CrossBatchMemory admits losses by class name; GenericLoss and Metrix
# keep its contract.
_supported = CrossBatchMemory.supported_losses()
CrossBatchMemory.supported_losses = staticmethod(lambda: [*_supported, "GenericLoss", "Metrix"])


class Comparison:
    """A anchors compared with N candidates.

    anchors (A, D) and candidates (N, D) are unit vectors; similarity, label (1 where the classes
    agree) and mask (False where the candidate is the anchor itself) are (A, N); present (A,) are
    the anchors with any candidate.
    """

    def __init__(
        self, anchors: Tensor, anchor_labels: Tensor, candidates: Tensor, candidate_labels: Tensor
    ):
        self.anchors, self.candidates = anchors, candidates
        self.among_themselves = anchors is candidates
        self.similarity = (
            Gram.apply(anchors) if self.among_themselves else anchors @ candidates.T
        )  # (A, N)
        self.label = anchor_labels[:, None] == candidate_labels[None]  # (A, N) bool
        self.mask = torch.ones_like(self.label)
        if self.among_themselves:
            self.mask.fill_diagonal_(False)
        # mined or not, an anchor that could have been compared counts in the mean, as in
        # pytorch-metric-learning
        self.present = has_any(self.mask)

    def keep(self, indices_tuple: tuple[Tensor, ...]) -> None:
        """Compare only the pairs of a miner, given as (a1, p, a2, n) or as triplets (a, p, n)."""
        a1, p, a2, n = lmu.convert_to_pairs(indices_tuple, None)
        mined = torch.zeros_like(self.mask)
        mined[a1, p] = True
        mined[a2, n] = True
        self.mask = mined


class Unit(torch.autograd.Function):
    """Rows of X at unit length, (N, D), as `F.normalize` has them. Its gradient, written out as
    (G - (G . Y) Y) / |X|, takes fewer passes over memory, which is most of a small batch's cost."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min_(1e-12)
        y = x / length
        ctx.save_for_backward(y, length)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> Tensor:
        y, length = ctx.saved_tensors
        along = (grad * y).sum(1, keepdim=True)
        return torch.addcmul(grad, y, along, value=-1).div_(length)


class Gram(torch.autograd.Function):
    """X X^T. Its gradient (G + G^T) X is one matrix product; as a product of two matrices it would
    take two."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x @ x.T

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return (grad + grad.T) @ x


def weights(similarity: Tensor, label: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """y and 1 - y of the candidates that count, 0 for the others, in the type of the
    similarities."""
    mask = mask.to(similarity.dtype)
    positive = label * mask
    return positive, mask - positive


def has_any(mask: Tensor) -> Tensor:
    """Which rows of a mask have anything, (A, N) -> (A,) bool."""
    return mask.sum(1, dtype=torch.int32) > 0  # any(1) and sums in 64 bits are slow on a CPU


def as_float(x: Tensor) -> Tensor:
    """Half precision to float32: a similarity of 8 bits cannot carry an exponent of 100."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def full_precision(x: Tensor) -> AbstractContextManager:
    """The context in which a loss is computed: autocast off on the device of x."""
    kind = x.device.type  # to enter autocast costs more than a small operation
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def on_device(labels: Tensor | None, embeddings: Tensor) -> Tensor | None:
    """Labels where the embeddings are."""
    return labels if labels is None else labels.to(embeddings.device)


def check_batch(embeddings: Tensor, labels: Tensor, ref_emb=None, ref_labels=None) -> None:
    """Refuse embeddings and labels that do not belong together, naming what is wrong."""
    for name, x, y in (("embeddings", embeddings, labels), ("ref_emb", ref_emb, ref_labels)):
        if x is None and y is None and name == "ref_emb":
            continue
        if x is None or y is None:
            raise ValueError(f"{name} and its labels must be given together")
        if x.ndim != 2:
            raise ValueError(f"{name} must be a matrix (B, D), not of shape {tuple(x.shape)}")
        if y.ndim != 1 or len(y) != len(x):
            raise ValueError(f"{name} has {len(x)} rows, its labels have shape {tuple(y.shape)}")


def sound(loss: GenericLoss, embeddings: Tensor, labels: Tensor) -> Tensor:
    """Whether the numbers of a batch are usable, a 0-d bool still on the device: looking at it
    waits for the device."""
    # a sum is finite only if all its terms are, and is cheaper than a mask of them
    total = embeddings.detach().sum(dtype=torch.promote_types(embeddings.dtype, torch.float32))
    fine = total * 0 == 0
    if hasattr(loss, "proxies"):
        lowest, highest = labels.aminmax()
        fine = fine & (lowest >= 0) & (highest < len(loss.proxies))
    return fine


def refuse(loss: GenericLoss, embeddings: Tensor, labels: Tensor) -> None:
    """Say what is wrong with a batch that is not `sound`."""
    bad = ~embeddings.isfinite().all(1)
    if bad.any():
        raise ValueError(
            f"embeddings are not finite: row {int(bad.nonzero()[0])}, {int(bad.sum())} rows in all"
        )
    if hasattr(loss, "proxies"):
        wrong = labels[(labels < 0) | (labels >= len(loss.proxies))]
        if len(wrong):
            raise ValueError(
                f"label {int(wrong[0])} has no proxy: classes are 0 to {len(loss.proxies) - 1}"
            )


def _one_of(name: str, value: str, valid) -> None:
    if value not in valid:
        raise ValueError(f"{name}={value!r} is not one of {', '.join(valid)}")


# -- The losses of Metrix's Table 1 (REF: book/02_generic_loss), each one statement


def contrastive(
    margin: float = 0.5, *, distance: bool = False, reduction: str = "anchors"
) -> GenericLoss:
    """Contrastive loss (Hadsell et al., CVPR 2006): rho+ = -s, rho- = [s - m]+. Anchors and
    candidates are examples.

    `distance=True` is the form that Metrix's released code computes: with d = ||a - x|| = sqrt(2 -
    2 s) of unit vectors, rho+ = d and rho- = [m - d]+. Where pytorch-metric-learning has [1 - s]+
    for positives, this has -s: one less.
    """
    if distance:
        # d has no derivative at 0, where two embeddings coincide
        d = lambda s: (2 - 2 * s).clamp(min=1e-12).sqrt()  # noqa: E731
        return GenericLoss(d, lambda s: F.relu(margin - d(s)), reduction=reduction)
    return GenericLoss(torch.neg, lambda s: F.relu(s - margin), reduction=reduction)


def lifted_structure(margin: float = 0.5, *, reduction: str = "anchors") -> GenericLoss:
    """Lifted structure, generalised (Hermans et al. 2017): [log sum+ e^(-s) + log sum- e^(s - m)]+,
    all examples."""
    return GenericLoss(Exp(-1), Exp(1, margin), Log(), Log(), F.relu, reduction=reduction)


def binomial_deviance(
    beta: float = 2.0, gamma: float = 40.0, margin: float = 0.5, *, reduction: str = "anchors"
) -> GenericLoss:
    """Binomial deviance (Yi et al., ICPR 2014): log(1 + e^(-beta (s - m))), log(1 + e^(gamma (s -
    m))), all examples."""
    return GenericLoss(
        lambda s: F.softplus(-beta * (s - margin)),
        lambda s: F.softplus(gamma * (s - margin)),
        reduction=reduction,
    )


def multi_similarity(
    beta: float = 18.0, gamma: float = 75.0, margin: float = 0.77, *, reduction: str = "anchors"
) -> GenericLoss:
    """Multi-similarity (Wang et al., CVPR 2019): log(1 + sum+ e^(-beta (s - m))) / beta + log(1 +
    sum- e^(gamma (s - m))) / gamma, all examples; the defaults are Metrix's."""
    return GenericLoss(
        Exp(-beta, margin),
        Exp(gamma, margin),
        Log(1 / beta, 1),
        Log(1 / gamma, 1),
        reduction=reduction,
    )


def proxy_anchor(
    num_classes: int,
    embedding_size: int,
    margin: float = 0.1,
    beta: float = 32.0,
    *,
    reduction: str = "proxies",
) -> GenericLoss:
    """Proxy Anchor (Kim et al., CVPR 2020), as its authors' code has it: anchors are proxies,
    candidates examples; log(1 + sum+ e^(-beta (s - m))) + log(1 + sum- e^(beta (s + m)))."""
    return GenericLoss(
        Exp(-beta, margin),
        Exp(beta, -margin),
        Log(plus=1),
        Log(plus=1),
        anchor="proxy",
        num_classes=num_classes,
        embedding_size=embedding_size,
        reduction=reduction,
    )


def nca(
    temperature: float = 1.0, *, denominator: str = "negatives", reduction: str = "positive_anchors"
) -> GenericLoss:
    """NCA (Goldberger et al., NeurIPS 2004): -log sum+ e^(s/T) + log sum- e^(s/T), all examples.
    `denominator="all"` is the softmax form of the original and of pytorch-metric-learning, with the
    positives below the line as well."""
    rho = Exp(1 / temperature)
    return GenericLoss(rho, rho, Log(-1), Log(), denominator=denominator, reduction=reduction)


def proxy_nca(
    num_classes: int,
    embedding_size: int,
    temperature: float = 1.0,
    *,
    denominator: str = "negatives",
    reduction: str = "positive_anchors",
) -> GenericLoss:
    """ProxyNCA (Movshovitz-Attias et al., ICCV 2017): NCA with proxies as candidates, anchors are
    examples."""
    rho = Exp(1 / temperature)
    return GenericLoss(
        rho,
        rho,
        Log(-1),
        Log(),
        candidate="proxy",
        num_classes=num_classes,
        embedding_size=embedding_size,
        denominator=denominator,
        reduction=reduction,
    )


def proxy_nca_pp(
    num_classes: int,
    embedding_size: int,
    temperature: float = 1 / 9,
    *,
    denominator: str = "all",
    reduction: str = "positive_anchors",
) -> GenericLoss:
    """ProxyNCA++ (Teh et al., ECCV 2020): ProxyNCA with a low temperature (the authors' 1/9) and
    the softmax over all proxies, its "proxy assignment probability"."""
    return proxy_nca(
        num_classes, embedding_size, temperature, denominator=denominator, reduction=reduction
    )


LOSSES = {
    "contrastive": contrastive,
    "lifted_structure": lifted_structure,
    "binomial_deviance": binomial_deviance,
    "multi_similarity": multi_similarity,
    "proxy_anchor": proxy_anchor,
    "nca": nca,
    "proxy_nca": proxy_nca,
    "proxy_nca_pp": proxy_nca_pp,
}


def soft_triple(
    num_classes: int,
    embedding_size: int,
    centers_per_class: int = 10,
    scale: float = 20.0,
    gamma: float = 0.1,
    margin: float = 0.01,
    tau: float = 0.2,
) -> SoftTripleLoss:
    """SoftTriple (Qian et al., ICCV 2019), pytorch-metric-learning's: several centres a class, to
    compare ProxyGML with; tau weighs the regulariser that merges a class's centres. The defaults
    are its authors'. It is not of the generic form: Metrix cannot mix for it."""
    options = {}
    if tau and centers_per_class > 1:
        merging = SparseCentersRegularizer(num_classes, centers_per_class)
        options = {"weight_regularizer": merging, "weight_reg_weight": tau}
    return SoftTripleLoss(
        num_classes, embedding_size, centers_per_class, scale, gamma, margin, **options
    )


def build(
    name: str, num_classes: int, embedding_size: int, others=None, **options
) -> BaseMetricLossFunction:
    """The loss called `name` (a key of `LOSSES`) with its options, for a recipe that knows only
    words and numbers.

    Args:
        name: of the loss.
        num_classes, embedding_size: for a loss with proxies.
        others: name -> function of losses that are not of the generic form, besides `LOSSES`.
        options: the loss's own.

    Raises:
        ValueError: an unknown loss, or an option that this loss does not have; both with what would
            be valid.
    """
    table = LOSSES | (others or {})
    _one_of("loss", name, table)
    parameters = inspect.signature(table[name]).parameters
    shape = {"num_classes": num_classes, "embedding_size": embedding_size}
    valid = [key for key in parameters if key not in shape]
    for key in options:
        _one_of(f"option of {name}", key, valid)
    return table[name](**{k: v for k, v in shape.items() if k in parameters}, **options)
