# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# (ch-interpolating)=
# # A mixed example is partly positive and partly negative
#
# Mix two images and a classifier's target is mixed with them {cite:p}`zhang2018mixup`.
# Metric learning has no target: whether an example is positive or negative depends on who
# asks. By the end of this page, a mixed example has a label *for each anchor*, the loss
# of {eq}`eq-generic` takes it as it is, and mixing embeddings has turned out to need no
# mixed embedding at all.
#
# > $y \in [0, 1]$, both contributions are non-zero.
# >
# > — Metrix {cite:p}`venkataramanan2022metrix`, the authors' poster

# %% tags=["remove-cell"]
import inspect

import pandas as pd
import torch
import torch.nn.functional as F
from IPython.display import Code
from myst_nb import glue

from dml import losses, mixup, plot

plot.use_style()

# %% tags=["parameters"]
seed: int = 0  # of the random embeddings below
lam: float = 0.7  # lambda of the worked example
hardest: int = 3  # k: negatives of an anchor that are mixed
batch_size: int = 100  # of the cost of mixing
images_per_class: int = 5  # in that batch
embedding_size: int = 512  # its dimensions

# %% [markdown]
# ## Mixing, twice with the same lambda
#
# Two examples $u, u'$ and, for an anchor $a$, their labels $y, y'$ are interpolated
# together,
#
# $$
# v = \lambda u + (1 - \lambda) u', \qquad
# y_v = \lambda y + (1 - \lambda) y', \qquad
# \lambda \sim \mathrm{Beta}(\alpha, \alpha),
# $$ (eq-mix)
#
# where $u$ may be an image, a stack of feature maps, or an embedding. The mixed candidates
# $V(a)$ of an anchor take the place of the clean ones in {eq}`eq-generic`:
#
# $$
# \tilde\ell(a) = \tau \Big( \sigma^+ \Big( \sum_{v \in V(a)} y_v \, \rho^+(s(a, v)) \Big)
#   + \sigma^- \Big( \sum_{v \in V(a)} (1 - y_v) \, \rho^-(s(a, v)) \Big) \Big)
# $$ (eq-mixed)
#
# and both losses are minimised together, with a weight $w$ that defaults to
# {glue:text}`weight`:
#
# $$
# E = \frac{1}{|X|} \sum_{a \in X} \ell(a) + w \, \tilde\ell(a).
# $$ (eq-total)
#
# $\ell$ is linear in neither $y$ nor the candidates. Nothing was approximated: a fraction
# $y_v$ of a mixed candidate counts as positive and the rest as negative, inside the sums.

# %%
loss = losses.multi_similarity()
similarity = torch.tensor([[0.9, 0.6, 0.3]])  # one anchor, three mixed candidates
label = torch.tensor([[lam, 0.5, 1 - lam]])
loss.per_anchor(similarity, label, mask=torch.ones(1, 3, dtype=torch.bool))

# %% tags=["remove-cell"]
glue("weight", mixup.Metrix(loss).weight, display=False)
glue("k", mixup.Metrix(loss).hardest, display=False)
glue("alpha", mixup.Metrix(loss).alpha, display=False)

# %% [markdown]
# ## Who is mixed with whom
#
# The set $M(a)$ of pairs to mix is a choice. Metrix draws, for each iteration, one of two
# kinds, with $\alpha$ = {glue:text}`alpha`:
#
# | pair | first parent ($\lambda$) | second parent | label | drawn by default |
# |---|---|---|---|---|
# | positive-negative | a positive of $a$ | a negative of $a$ | $\lambda$ | yes |
# | anchor-negative | $a$ itself, $s(a, a) = 1$ | a negative of $a$ | $\lambda$ | yes |
# | positive-positive | a positive | a later positive | $1$ | no |
# | negative-negative | a negative | a later negative | $0$ | no |
#
# Of an anchor's negatives, the $k$ = {glue:text}`k` most similar ones take part. Here is a
# batch of seven in the plane, and what the first of them is offered.

# %%
angles = torch.tensor([90.0, 70.0, 50.0, 30.0, 5.0, 150.0, 200.0]).deg2rad()
x = torch.stack([angles.cos(), angles.sin()], 1)
labels = torch.tensor([0, 0, 0, 1, 1, 2, 2])

# %% tags=["hide-input"] mystnb={"figure": {"caption": "One anchor's mixed candidates in the plane, by kind of pair. A candidate's colour is its label for this anchor, from negative to positive; lines lead to its parents. Mixed embeddings are normalised again, so they lie on the circle.", "name": "fig-pairs"}, "image": {"alt": "Four unit circles with the same seven examples. On each, the mixed candidates of the anchor are drawn between their parents, coloured by label: between positives and negatives, between the anchor and negatives, between positives, and between negatives."}}
metrix = mixup.Metrix(loss, mixup.PAIRS, hardest)
plot.mixing_pairs(x, labels, metrix, lam)
# %% [markdown]
# ## Lambda at its ends gives the parents back
#
# With $\lambda = 1$ every mixed candidate is its first parent, and with $\lambda = 0$ its
# second. The tests hold every loss, every kind of pair and every space to this, and to two
# plain loops over anchors and pairs that make every mixed vector. For one anchor, one
# positive and one negative it can be read off:

# %%
triple, of = x[[0, 1, 3]], labels[[0, 1, 3]]
one = mixup.Metrix(losses.contrastive(margin=2.0), "positive-negative", 1, weight=1.0)
clean = one.loss(triple, of)
ends = {end: (one(triple, of, lam=end) - clean).item() for end in (1.0, 0.5, 0.0)}
ends | {"-s(a, p)": (-triple[0] @ triple[1]).item()}

# %% [markdown]
# (the margin is out of reach, so only positives count; at $\lambda = 1$ what remains is the
# clean loss of the positive, at 0 nothing).
#
# ## Mixing embeddings needs no mixed embedding
#
# A mixed embedding only ever meets an anchor in a similarity. With unit vectors,
# $\langle a, \lambda u + (1-\lambda) u' \rangle$ is a mixture of two similarities, and the
# length of the mixture follows from a third:
#
# $$
# s(a, v) = \frac{\lambda \, s(a, u) + (1 - \lambda) \, s(a, u')}
#   {\sqrt{\lambda^2 + (1 - \lambda)^2 + 2 \lambda (1 - \lambda) \, s(u, u')}}.
# $$ (eq-gram)
#
# All three are entries of the matrix of similarities that the clean loss has already
# computed. So the mixed loss costs a few operations on numbers, whatever the embedding's
# dimension:

# %% tags=["hide-input"]
Code(inspect.getsource(mixup.mixed_similarity), language="python")

# %%
a, u, v = F.normalize(torch.randn(3, 1000, embedding_size, dtype=torch.float64), dim=2)
made = (a * F.normalize(lam * u + (1 - lam) * v, dim=1)).sum(1)
read = mixup.mixed_similarity((a * u).sum(1), (a * v).sum(1), (u * v).sum(1), lam)
difference = (made - read).abs().max().item()
assert difference < 1e-12
difference

# %% [markdown]
# ## What a batch would cost otherwise
#
# The number of mixed candidates of a batch, and the numbers that would be stored if each
# were made as a vector, against the entries of {eq}`eq-gram`:

# %%
torch.manual_seed(seed)
batch = torch.randn(batch_size, embedding_size)
batch_labels = torch.arange(batch_size) // images_per_class
pairs = loss.compare(F.normalize(batch, dim=1), batch_labels)
counts = {}
for kind in mixup.PAIRS:
    for k in (hardest, None):
        family = mixup.Metrix(loss, kind, k).parents(pairs, (kind,))[1][0]
        n = int(family.mask.sum())
        counts[kind, f"k = {k or 'all'}"] = {
            "mixed candidates": n,
            "numbers as vectors": n * embedding_size,
            "numbers as similarities": n,
        }
pd.DataFrame(counts).T.style.format("{:,.0f}")

# %% [markdown]
# The released code makes the vectors, for all negatives, repeats each once for every
# positive of the anchor, and then computes the distances of all rows to all rows to use
# the diagonal. {ref}`ch-training` never notices that it mixes.
#
# ## What we saw
#
# A mixed example has a label for each anchor; {eq}`eq-mixed` is {eq}`eq-generic` with that
# label; at $\lambda = 1$ it is the clean loss. In embedding space, {eq}`eq-gram` reads
# mixed similarities off the clean ones.
#
# ## Exercises
#
# 1. Show that the mixture of two *positives* has label 1 for every $\lambda$, and that
#    mixing only positives is what Embedding Expansion does. What does the label add?
# 2. Set `lam` to 0.5 and look at positive-negative pairs in {numref}`fig-pairs`. When is a
#    mixed candidate closer to the anchor than its positive parent?
# 3. With `draw="all"`, all kinds are mixed at once. Is the loss then the sum of the four?
