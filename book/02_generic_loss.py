# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# (ch-generic)=
# # Eight losses are one formula
#
# Contrastive, lifted structure, binomial deviance, multi-similarity, Proxy Anchor, NCA,
# ProxyNCA, ProxyNCA++: each came with its own paper, notation and code. By the end of
# this page they are eight settings of one class of a few dozen lines, equal to
# pytorch-metric-learning's to the last digits, and you will have written a ninth. The
# formula matters for what comes next: where it has a label $y$, mixup can put any number
# between 0 and 1.
#
# > This task is challenging because, unlike classification, the loss functions used in
# > metric learning are not additive over examples, so the idea of interpolating target
# > labels is not straightforward.
# >
# > — Metrix {cite:p}`venkataramanan2022metrix`, abstract

# %% tags=["remove-cell"]
import inspect

import pandas as pd
import torch
import torch.nn.functional as F
from IPython.display import Code
from myst_nb import glue
from pytorch_metric_learning import distances
from pytorch_metric_learning import losses as library

from dml import losses, plot, runs

plot.use_style()

# %% tags=["parameters"]
seed: int = 0  # of the random embeddings below
batch_size: int = 100  # of them
classes: int = 20  # among them
embedding_size: int = 64  # their dimensions
company: float = 0.8  # similarity of the second negative below
margin: float = 0.5  # of the contrastive loss

# %% [markdown]
# ## The formula
#
# An *anchor* $a$ is compared with *candidates* $x$ by a similarity $s(a, x)$, here always
# the cosine. A candidate's label is $y = 1$ if it is of the anchor's class, a *positive*,
# and $y = 0$ if not, a *negative*. Positives should be similar, so $\rho^+$ decreases in
# $s$; negatives should not, so $\rho^-$ increases:
#
# $$
# \ell(a) = \tau \Big( \sigma^+ \Big( \sum_x y \, \rho^+(s(a, x)) \Big)
#   + \sigma^- \Big( \sum_x (1 - y) \, \rho^-(s(a, x)) \Big) \Big)
# $$ (eq-generic)
#
# For hard labels, each candidate enters one of the two sums. The code is the formula with
# weights $y$ and $1 - y$; a sum of exponentials under a logarithm is taken in log space.

# %% tags=["hide-input"]
Code(
    "\n".join(
        inspect.getsource(part)
        for part in (losses.weighted_sum, losses.GenericLoss.parts, losses.GenericLoss.combine)
    ),
    language="python",
)

# %% [markdown]
# ## The eight
#
# | loss | anchor | candidates | $\tau$ | $\sigma^+$ | $\sigma^-$ | $\rho^+$ | $\rho^-$ |
# |---|---|---|---|---|---|---|---|
# | contrastive {cite:p}`hadsell2006contrastive` | example | examples | $x$ | $x$ | $x$ | $-s$ | $[s - m]_+$ |
# | lifted structure {cite:p}`hermans2017triplet` | example | examples | $[x]_+$ | $\log x$ | $\log x$ | $e^{-s}$ | $e^{s - m}$ |
# | binomial deviance {cite:p}`yi2014deviance` | example | examples | $x$ | $x$ | $x$ | $\log(1 + e^{-\beta (s - m)})$ | $\log(1 + e^{\gamma (s - m)})$ |
# | multi-similarity {cite:p}`wang2019multisimilarity` | example | examples | $x$ | $\frac{1}{\beta} \log(1 + x)$ | $\frac{1}{\gamma} \log(1 + x)$ | $e^{-\beta (s - m)}$ | $e^{\gamma (s - m)}$ |
# | Proxy Anchor {cite:p}`kim2020proxyanchor` | proxy | examples | $x$ | $\log(1 + x)$ | $\log(1 + x)$ | $e^{-\beta (s - m)}$ | $e^{\beta (s + m)}$ |
# | NCA {cite:p}`goldberger2005nca` | example | examples | $x$ | $-\log x$ | $\log x$ | $e^{s / T}$ | $e^{s / T}$ |
# | ProxyNCA {cite:p}`movshovitz2017proxynca` | example | proxies | $x$ | $-\log x$ | $\log x$ | $e^{s / T}$ | $e^{s / T}$ |
# | ProxyNCA++ {cite:p}`teh2020proxyncapp` | example | proxies | $x$ | $-\log x$ | $\log x$ | $e^{s / T}$ | $e^{s / T}$ |
#
# ```{admonition} What this table is, and is not
# :class: note
# It has the shape of the table in the Metrix paper. Each row was checked against the
# loss's own paper or code and is given as *that* has it. Proxy Anchor's authors have no
# $1/\beta$, and $+m$ among the negatives. ProxyNCA++ is ProxyNCA with a low temperature;
# as its authors do, its second sum runs over all proxies, the positive included
# (`denominator="all"`, also an option of NCA and ProxyNCA).
# ```
#
# One statement makes each of them; multi-similarity is

# %% tags=["hide-input"]
Code(inspect.getsource(losses.multi_similarity), language="python")

# %% [markdown]
# ## What a loss asks of a similarity
#
# The derivative of a loss by a similarity says how hard it pulls. For one candidate
# alone, as a function of where that candidate is:

# %%
torch.manual_seed(seed)
every = {name: losses.build(name, classes, embedding_size) for name in losses.LOSSES}


def pull(loss, y, s):
    """-dl/ds of an anchor with one candidate at each of the similarities s, label y."""
    s = s.clone().requires_grad_()
    label, mask = torch.full_like(s, y), torch.ones_like(s, dtype=torch.bool)
    value = loss.per_anchor(s[:, None], label[:, None], mask[:, None]).sum()
    return -torch.autograd.grad(value, s)[0]


s = torch.linspace(-1, 1, 201, dtype=torch.float64)
pulls = {name: (pull(loss, 1.0, s), pull(loss, 0.0, s)) for name, loss in every.items()}

# %% tags=["hide-input"] mystnb={"figure": {"caption": "How hard each loss pulls a lone candidate towards the anchor (above 0) or pushes it away (below), by the candidate's similarity. Contrastive pulls every positive alike and lets go of negatives beyond its margin; multi-similarity and Proxy Anchor let go of both where they are good enough. A lone candidate under a plain logarithm is pulled alike everywhere, since its ratio to itself is one.", "name": "fig-pull"}, "image": {"alt": "Eight small panels, one a loss, with two curves each: the pull on a positive, above zero, and the push on a negative, below zero, against similarity from -1 to 1."}}
plot.pulls(s, pulls)
# %% [markdown]
# Contrastive and binomial deviance are *additive*: a candidate's pull depends on itself
# alone. The others are not. Put a second negative, a hard one, beside the first, and the
# first one feels it:

# %% tags=["hide-input"] mystnb={"figure": {"caption": "The push on a negative, by its similarity, alone and beside a second, hard negative. For an additive loss the two curves coincide; for the others the harder negative takes over.", "name": "fig-additive"}, "image": {"alt": "Two panels. Contrastive: one curve, the two cases coincide. Multi-similarity: the push on a negative with company stays near zero until it is about as similar as its company."}}
both = {}
for name in ("contrastive", "multi_similarity"):
    pair = torch.stack([s, torch.full_like(s, company)], 1).requires_grad_()
    label, mask = torch.zeros_like(pair), torch.ones_like(pair, dtype=torch.bool)
    beside = -torch.autograd.grad(every[name].per_anchor(pair, label, mask).sum(), pair)[0]
    both[name] = (pulls[name][1], beside[:, 0])
plot.additivity(s, both)
# %% [markdown]
# This is why labels cannot simply be interpolated from outside, as one mixes two
# cross-entropies: the mixed label has to go *inside* the sums. {eq}`eq-generic` has a
# place for it.
#
# ## Equal to the library
#
# With the same reduction, value and gradient are those of pytorch-metric-learning
# {cite:p}`musgrave2020pml`. One random batch, in double precision:

# %%
generator = torch.Generator().manual_seed(seed)
x = torch.randn(batch_size, embedding_size, generator=generator, dtype=torch.float64)
x.requires_grad_()
labels = torch.arange(batch_size) % classes
cosine = distances.CosineSimilarity()
shape = (classes, embedding_size)
pairs = {
    # theirs has [1 - s]+ where the table has -s: one more, the same gradient
    "contrastive": (
        losses.contrastive(reduction="nonzero_pairs"),
        library.ContrastiveLoss(1, 0.5, distance=cosine),
        1,
    ),
    "lifted_structure": (
        losses.lifted_structure(0.5),
        library.GeneralizedLiftedStructureLoss(0.5, distance=cosine),
        0,
    ),
    "multi_similarity": (
        losses.multi_similarity(18, 75, 0.77),
        library.MultiSimilarityLoss(18, 75, 0.77),
        0,
    ),
    "proxy_anchor": (losses.proxy_anchor(*shape), library.ProxyAnchorLoss(*shape), 0),
    "nca": (losses.nca(denominator="all"), library.NCALoss(distance=cosine), 0),
    "proxy_nca": (
        losses.proxy_nca(*shape, denominator="all"),
        library.ProxyNCALoss(*shape, distance=cosine),
        0,
    ),
}

# %% tags=["hide-input"]
rows = {}
for name, (ours, theirs, less) in pairs.items():
    if hasattr(ours, "proxies"):
        theirs.proxies.data = ours.double().proxies.data.clone()
    values = ours(x, labels), theirs(x, labels) - less
    grads = [torch.autograd.grad(v, x)[0] for v in values]
    rows[name] = {
        "value": values[0].item(),
        "difference in value": (values[0] - values[1]).abs().item(),
        "largest in gradient": (grads[0] - grads[1]).abs().max().item(),
    }
    assert max(list(rows[name].values())[1:]) < 1e-6, name
pd.DataFrame(rows).T.style.format({"value": "{:.4f}"}, precision=1).format(
    "{:.0e}", subset=["difference in value", "largest in gradient"]
)

# %% [markdown]
# Each cell above is asserted, not only shown. Where the library has no counterpart
# (binomial deviance; NCA with the negatives alone below the line) the tests compare with
# two plain loops. They do so in four precisions, and leave this table: the largest relative
# difference in value and in gradient from the same numbers in double precision. Below
# float32, the loss is computed in float32 and its gradient rounded to the embeddings'.

# %% tags=["hide-input"]
parity = pd.read_csv(runs.ROOT / "results" / "parity.csv")
clean = parity[parity["mixing"] == "none"]
wide = clean.pivot(index=["loss", "against"], columns="precision", values=["value", "gradient"])
wide = wide.swaplevel(axis=1)[
    [(p, what) for p in parity["precision"].unique() for what in ("value", "gradient")]
]
wide.style.format("{:.0e}")

# %% [markdown]
# ## How a batch becomes one number
#
# The formula gives one number for each anchor. What is then averaged is rarely printed
# in papers and changes the size of every gradient: over anchors, over pairs, or over the
# pairs that are not yet zero. So it is a named parameter, `reduction`.

# %%
sizes = {}
for reduction in ("anchors", "pairs", "nonzero_pairs"):
    value = losses.contrastive(reduction=reduction)(x, labels)
    gradient = torch.autograd.grad(value, x)[0].norm()
    sizes[reduction] = {"value": value.item(), "norm of the gradient": gradient.item()}
pd.DataFrame(sizes).T.style.format(precision=4)

# %% [markdown]
# ## A loss of your own
#
# Any callables will do. Here positives are pulled quadratically, and negatives with a
# soft margin; the new loss mixes like every other ({ref}`ch-interpolating`).

# %%
own = losses.GenericLoss(
    rho_pos=lambda s: (1 - s) ** 2,
    rho_neg=lambda s: F.softplus(10 * (s - 0.5)) / 10,
)
own(x, labels)

# %% [markdown]
# ## What released code computes
#
# Metrix's released contrastive loss is not the table's row. It measures the *distance* of
# unit vectors, $d = \sqrt{2 - 2s}$, with $\rho^+ = d$ and $\rho^- = [m - d]_+$. The
# pull then depends on where the pair is: it grows without bound as two positives meet,
# and negatives count only when they are almost as close as that.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "The contrastive loss on similarities, as the paper's table has it, and on distances, as the released code does, both with the same margin: the pull on a positive and the push on a negative.", "name": "fig-distance"}, "image": {"alt": "Two panels against similarity. On similarities the pull on positives is constant and negatives are pushed above the margin. On distances the pull grows steeply towards similarity one and only very similar negatives are pushed."}}
forms = {
    "on similarities": losses.contrastive(margin),
    "on distances": losses.contrastive(margin, distance=True),
}
near = s[s < 0.995]
plot.two_forms(near, {n: (pull(f, 1.0, near), pull(f, 0.0, near)) for n, f in forms.items()})
# %% tags=["remove-cell"]
glue("margin", margin, display=False)
glue("reach", 1 - margin**2 / 2, display=False)

# %% [markdown]
# With the same margin, negatives are pushed above a similarity of
# {glue:text}`margin:.1f` in one form and of {glue:text}`reach:.3f` in the other. Both are here:
# `losses.contrastive(distance=True)` is the second.
#
# ## What we saw
#
# Eight losses are one class with different functions; their values and gradients are the
# library's; a ninth took one statement. Most are not additive over candidates, so a mixed
# label has to enter the sums of {eq}`eq-generic`, which is where the next page puts it.
#
# ## Exercises
#
# 1. Which $\rho$ and $\sigma$ turn multi-similarity into contrastive as
#    $\beta, \gamma \to \infty$? Check with `losses.multi_similarity(1000, 1000, 0.5)`.
# 2. Give every anchor a single positive. Which losses become equal up to a constant?
# 3. Write the angular form of contrastive, $\rho^+ = \arccos s$, as a `GenericLoss`. What
#    happens to its gradient at $s = 1$, and how does `contrastive(distance=True)` avoid it?
