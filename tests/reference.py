"""The formulas as double loops over Python numbers and single similarities: slow, and with nothing
to get wrong."""

import itertools
import math

import torch
import torch.nn.functional as F

# sigma+, sigma-, rho+, rho- and tau of the table of losses, as printed (book/02_generic_loss), on
# 0-d tensors
relu, log = torch.relu, torch.log


def table(name, **p):
    """(tau, sigma+, sigma-, rho+, rho-) of a row of the table."""

    def x(v):
        return v

    m, b, g, t = (p.get(key) for key in ("margin", "beta", "gamma", "temperature"))
    return {
        "contrastive": (x, x, x, lambda s: -s, lambda s: relu(s - m)),
        "lifted_structure": (relu, log, log, lambda s: (-s).exp(), lambda s: (s - m).exp()),
        "binomial_deviance": (
            x,
            x,
            x,
            lambda s: log(1 + (-b * (s - m)).exp()),
            lambda s: log(1 + (g * (s - m)).exp()),
        ),
        "multi_similarity": (
            x,
            lambda v: log(1 + v) / b,
            lambda v: log(1 + v) / g,
            lambda s: (-b * (s - m)).exp(),
            lambda s: (g * (s - m)).exp(),
        ),
        "proxy_anchor": (
            x,
            lambda v: log(1 + v),
            lambda v: log(1 + v),
            lambda s: (-b * (s - m)).exp(),
            lambda s: (b * (s + m)).exp(),
        ),
        "nca": (x, lambda v: -log(v), log, lambda s: (s / t).exp(), lambda s: (s / t).exp()),
    }[{"proxy_nca": "nca", "proxy_nca_pp": "nca"}.get(name, name)]


def side(sigma, rho, terms):
    """sigma( sum w rho(s) ) over terms (w, s) of weight above 0; a log of an empty sum is left
    out."""
    terms = [(w, s) for w, s in terms if w > 0]
    if not terms:
        value = sigma(torch.tensor(0.0, dtype=torch.float64))
        return value if math.isfinite(value) else torch.tensor(0.0, dtype=torch.float64)
    return sigma(sum(w * rho(s) for w, s in terms))


def anchor_loss(row, candidates, denominator="negatives"):
    """l(a) for candidates (y, s)."""
    tau, sigma_pos, sigma_neg, rho_pos, rho_neg = row
    below = [(1 - y if denominator == "negatives" else 1, s) for y, s in candidates]
    pos, neg = side(sigma_pos, rho_pos, candidates), side(sigma_neg, rho_neg, below)
    return tau(pos + neg), pos, neg


def reduce(anchors, reduction):
    """A batch's loss from one list of (candidates, (l, pos, neg)) per anchor."""
    anchors = [a for a in anchors if a[0]]
    with_positive = [a for a in anchors if any(y > 0 for y, _ in a[0])]
    zero = torch.tensor(0.0, dtype=torch.float64)

    def mean(values):
        return sum(values, zero) / max(len(values), 1)

    if reduction == "anchors":
        return mean([loss for _, (loss, _, _) in anchors])
    if reduction == "positive_anchors":
        return mean([loss for _, (loss, _, _) in with_positive])
    if reduction == "proxies":
        return mean([pos for _, (_, pos, _) in with_positive]) + mean(
            [neg for _, (_, _, neg) in anchors]
        )
    raise ValueError(reduction)


def clean_candidates(loss, embeddings, labels):
    """For each anchor of a loss, its label, vector and candidates [(label, vector)]; an example is
    not its own."""
    x = F.normalize(embeddings, dim=1)
    examples = list(zip(labels.tolist(), x, strict=True))
    proxies = list(enumerate(F.normalize(loss.proxies, dim=1))) if hasattr(loss, "proxies") else []
    if loss.anchor == "proxy":
        return [(c, w, list(examples)) for c, w in proxies]
    if loss.candidate == "proxy":
        return [(y, a, list(proxies)) for y, a in examples]
    return [(y, a, examples[:n] + examples[n + 1 :]) for n, (y, a) in enumerate(examples)]


def clean(loss, row, embeddings, labels):
    """mean_a l(a), by the formula."""
    anchors = []
    for label, a, candidates in clean_candidates(loss, embeddings, labels):
        terms = [(float(y == label), a @ x) for y, x in candidates]
        anchors.append((terms, anchor_loss(row, terms, loss.denominator)))
    return reduce(anchors, loss.reduction)


def parent_pairs(kind, label, a, candidates, hardest):
    """M(a): pairs of parents [(y, u), (y', u')] of one kind for one anchor; lam goes with the
    first."""
    positives = [x for y, x in candidates if y == label]
    negatives = [(n, x) for n, (y, x) in enumerate(candidates) if y != label]
    negatives = sorted(negatives, key=lambda nx: -(a @ nx[1]).item())[:hardest]
    negatives = [x for _, x in sorted(negatives, key=lambda nx: nx[0])]
    return {
        "positive-negative": [((1, u), (0, v)) for u in positives for v in negatives],
        "anchor-negative": [((1, a), (0, v)) for v in negatives],
        "positive-positive": [((1, u), (1, v)) for u, v in itertools.combinations(positives, 2)],
        "negative-negative": [((0, u), (0, v)) for u, v in itertools.combinations(negatives, 2)],
    }[kind]


def mixed(loss, row, embeddings, labels, kinds, hardest, lam):
    """mean_a l~(a) over mixed embeddings, by the formula: every mixed vector is made and
    normalised."""
    anchors = []
    for label, a, candidates in clean_candidates(loss, embeddings, labels):
        terms = []
        for kind in kinds:
            for (y, u), (y_, v) in parent_pairs(kind, label, a, candidates, hardest):
                x = F.normalize(lam * u + (1 - lam) * v, dim=0)
                terms.append((lam * y + (1 - lam) * y_, a @ x))
        if terms:
            anchors.append((terms, anchor_loss(row, terms, loss.denominator)))
    return reduce(anchors, loss.reduction)
