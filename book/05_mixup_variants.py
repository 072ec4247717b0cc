# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# (ch-variants)=
# # Five choices make a variant
#
# {eq}`eq-mixed` leaves five things open: the space to mix in, the kinds of pairs, how
# many hard negatives, the distribution of $\lambda$, and the weight $w$. By the end of
# this page you will know what each of them does to the computation, what the authors'
# released code does in their place, and which of them could be seen to matter in a
# trial with several seeds.
#
# > In general, `Metrix/input` is not computationally efficient (because the mixup takes
# > place between images), while `Metrix/embed` is very efficient (because the mixup takes
# > place between low-dimensional vectors).
# >
# > — Metrix {cite:p}`venkataramanan2022metrix`, the README of the authors' repository

# %% tags=["remove-cell"]
import inspect

import pandas as pd
import torch
import torch.nn.functional as F
from IPython.display import Code
from myst_nb import glue

from dml import losses, mixup, model, plot, runs

plot.use_style()

# %% tags=["parameters"]
seed: int = 0  # of the random numbers below
lam: float = 0.3  # lambda of the worked examples
tag: str = "small"  # the ablation's runs: the tags that begin with this
metric: str = "recall_at_1"  # by which its variants are compared

# %% [markdown]
# ## Three spaces, one branch of the network
#
# Write the network as $f = f_m \circ f_e$ with everything up to some layer in $f_e$. Mixing
# in a space means to run $f_e$ on the parents and $f_m$ on the mixture,
#
# $$
# f_\lambda(x, x') = f_m\big(\lambda f_e(x) + (1 - \lambda) f_e(x')\big),
# $$ (eq-spaces)
#
# with the identity as $f_e$ for images, the backbone for features, and the whole network
# for embeddings. In code the spaces differ in what is called on the mixture:

# %% tags=["hide-input"]
Code(inspect.getsource(model.EmbeddingModel.mixer), language="python")

# %% [markdown]
# Embeddings need nothing at all ({eq}`eq-gram`). Images need the backbone again, for each
# of the $U$ distinct pairs. Features are between: they are there from the clean pass, and
# $f_m$ is a pooling and one linear layer. Average pooling is linear, so the average of a
# mixture is the mixture of averages. Only the maximum has to see the mixed maps, and it can
# forget each of them at once: its gradient goes to one position.

# %%
torch.manual_seed(seed)
maps = torch.randn(20, 64, 7, 7)  # feature maps of 20 images
i, j = torch.randint(20, (2, 300))
made = mixup.interpolate(maps, i, j, lam)  # what need not be kept
kept = model.pool_mixed(maps, i, j, lam)
assert torch.allclose(kept, made.mean((2, 3)) + made.amax((2, 3)), atol=1e-6)
{"numbers in the mixed maps": made.numel(), "numbers kept": kept.numel()}

# %% [markdown]
# ## Kinds of pairs and hard negatives
#
# {ref}`ch-interpolating` has the four kinds. The number $k$ of hardest negatives bounds how
# many candidates an anchor is offered; with a mixed candidate for each of its positives and
# each of its $k$ negatives, most of what a step costs is proportional to $k$:

# %%
labels = torch.arange(100) // 5
x = F.normalize(torch.randn(100, 64), dim=1)
pairs = losses.multi_similarity().compare(x, labels)


def distinct(kind, k):
    """U, the mixed examples of a batch when each is made once."""
    rows, (family,) = mixup.Metrix(losses.contrastive(), kind, k).parents(pairs, (kind,))
    first = rows[:, None].expand_as(family.j) if family.i is None else family.i
    return len((first * len(x) + family.j)[family.mask].unique())


counts = {
    kind: {f"k = {k or 'all'}": distinct(kind, k) for k in (1, 3, 10, None)} for kind in mixup.PAIRS
}
pd.DataFrame(counts).T.style.format("{:,}")

# %% [markdown]
# (distinct mixed examples of a batch of 20 classes with 5 images each. A pair that several
# anchors use is mixed once.)
#
# ## Lambda and the weight
#
# $\lambda \sim \mathrm{Beta}(\alpha, \alpha)$ is drawn once an iteration. A small $\alpha$
# leaves most mixtures close to one parent, a large one makes halves. The weight $w$ is the
# price of all this in the total loss {eq}`eq-total`.
#
# ## What the released code computes
#
# The authors' code is the only other implementation. Read closely, it departs from the
# formulas in places; here is each of them in a few lines, written from reading it, beside
# what was meant.
#
# **Hard negatives for input mixup come from another anchor's list.** The distances of an
# anchor's negatives are sorted, and the resulting positions, which count within its own
# negatives, are looked up among the negatives of all anchors.

# %%
batches = {
    "20 classes x 5": torch.arange(100) // 5,
    "100 images of 100 classes": torch.randint(100, (100,)),
}
rows = {}
for name, labels in batches.items():
    same = labels[:, None] == labels
    anchor, negative = (~same).nonzero(as_tuple=True)
    wrong = own_class = 0
    for a in range(len(labels)):
        mine = negative[anchor == a]
        place = (x[a] @ x[mine].T).argsort(descending=True)[0]  # within `mine`
        meant, taken = mine[place], negative[place]  # the second is the slip
        wrong += int(meant != taken)
        own_class += int(labels[taken] == labels[a])
    rows[name] = {"another image": wrong, "of the anchor's own class": own_class}
slips = pd.DataFrame(rows).T
slips

# %% [markdown]
# Of 100 anchors, this many are mixed with an image that is not their hardest negative, or
# not a negative at all.
#
# **Anchor-negative pairs need an anchor without a positive.** With the balanced batches
# of its own recipes there is none, and the branch has nothing to mix. Positive-negative
# pairs use one positive of each anchor, always the first:

# %%
rows = {}
for name, labels in batches.items():
    positives = (labels[:, None] == labels).sum(1) - 1
    rows[name] = {
        "anchors left for anchor-negative": int((positives == 0).sum()),
        "share of positives used": (positives > 0).sum().item() / max(positives.sum().item(), 1),
    }
pd.DataFrame(rows).T.style.format({"anchors left for anchor-negative": "{:.0f}"}, precision=2)

# %% [markdown]
# **Multi-similarity with mixed embeddings forgets lambda.** The mask of mixed positives
# is turned into a Boolean, so that any $\lambda > 0$ counts as 1, and the mask of mixed
# negatives is never filled: the mixed negative term is always empty. A mixed example then
# attracts its anchor, whatever it is made of.

# %%
s = torch.linspace(-0.2, 1, 200, dtype=torch.float64)
loss = losses.multi_similarity()


def pull(positive, negative):
    """-dl/ds on one mixed candidate that counts as this much of each."""
    s_ = s.clone().requires_grad_()
    term = loss.sigma_pos(loss.rho_pos(s_) * positive) + loss.sigma_neg(loss.rho_neg(s_) * negative)
    return -torch.autograd.grad(term.sum(), s_)[0]


# %% tags=["hide-input"] mystnb={"figure": {"caption": "The pull of one mixed candidate on its anchor under multi-similarity, by its similarity, for three values of lambda: with the interpolated label, and as the released code has it. Above zero the loss attracts, below it repels.", "name": "fig-released-ms"}, "image": {"alt": "Two panels. With the interpolated label, each curve starts above zero and falls below it near the margin, the later the larger lambda. As released, the three curves coincide and never go below zero."}}
lams = (0.1, 0.5, 0.9)
plot.pull_by_lambda(
    s,
    {
        "with the label lambda": {lam: pull(lam, 1 - lam) for lam in lams},
        "as released": {lam: pull(float(lam > 0), 0.0) for lam in lams},
    },
)

# %% [markdown]
# The clean terms, meanwhile, are the ones that are multiplied by $\lambda$ and
# $1 - \lambda$. {numref}`fig-distance` has the fifth difference, distances for
# similarities in the contrastive loss.
#
# ## An ablation, with its error bars
#
# One thing at a time changes from the defaults: embedding space, both kinds,
# $k$ = {glue:text}`k`, $\alpha$ = {glue:text}`alpha`, $w$ = {glue:text}`w`. The data are
# a part of glyphs, the loss is multi-similarity, and each variant is compared with the
# baseline of its own seed. The runs are those of `book/recipes/grid-variants.yaml`
# (`make sweep GRID=book/recipes/grid-variants.yaml`).

# %% tags=["hide-input"]
table = runs.load(dataset="glyphs", loss="multi_similarity", profile="paper", folds=0)
table = table[table["tag"].str.split(".").str[0] == tag]
gains = runs.gains(table, metric, by=("mix", "tag"))


def describe(row):
    """(group, label) of a variant, by its tag."""
    name, _, value = row["tag"].removeprefix(tag).removeprefix(".").partition("=")
    kinds = dict(zip(("pn", "an", "pp", "nn"), mixup.PAIRS, strict=True))
    if not name:
        return "space", row["mix"]
    if name == "pairs":
        return "pairs", kinds.get(value, "all four")
    names = {"k": ("hard negatives", "k"), "w": ("weight", "w"), "alpha": ("lambda", "alpha")}
    group, symbol = names[name]
    return group, f"{symbol} = {'all' if value == 'None' else value}"


gains[["group", "label"]] = [describe(row) for _, row in gains.iterrows()]
order = ["space", "pairs", "hard negatives", "lambda", "weight"]
gains = gains.sort_values("group", key=lambda g: g.map(order.index), kind="stable")

# %% tags=["hide-input"] mystnb={"figure": {"caption": "What each variant of mixing adds to the baseline of the same seed: mean difference in Recall@1 on unseen classes and its 95 % confidence interval (Student's t). The first group varies the space; the others vary embedding mixup.", "name": "fig-ablation"}, "image": {"alt": "A forest plot: a point and a horizontal interval for each variant of mixup, grouped by space, pairs, hard negatives, lambda and weight, around a vertical line at no difference."}}
plot.forest(gains)

# %% tags=["hide-input"]
baseline = table[table["mix"] == "none"]
shown = gains[["group", "label", "seeds", "mean", "std", "low", "high"]]
shown.style.format("{:+.2f}", subset=["mean", "low", "high"]).format("{:.2f}", subset=["std"]).hide(
    axis="index"
)

# %% tags=["remove-cell"]
metrix = mixup.Metrix(loss)
glue("k", metrix.hardest, display=False)
glue("alpha", metrix.alpha, display=False)
glue("w", metrix.weight, display=False)
glue("seeds", int(gains["seeds"].max()), display=False)
glue("variants", len(gains), display=False)
glue("baseline", f"{100 * baseline[metric].mean():.1f}", display=False)
glue("baseline-std", f"{100 * baseline[metric].std():.1f}", display=False)
above, below = (gains["low"] > 0).sum(), (gains["high"] < 0).sum()
glue("above", int(above), display=False)
glue("below", int(below), display=False)
glue("chance", f"{0.05 * len(gains):.1f}", display=False)
best, worst = (gains.loc[gains["mean"].agg(which)] for which in ("idxmax", "idxmin"))
glue("best", f"{best['group']}: {best['label']} ({best['mean']:+.1f})", display=False)
glue("worst", f"{worst['group']}: {worst['label']} ({worst['mean']:+.1f})", display=False)

# %% [markdown]
# The baseline is at {glue:text}`baseline` ± {glue:text}`baseline-std` per cent over
# {glue:text}`seeds` seeds. Of {glue:text}`variants` variants, {glue:text}`above` have an
# interval wholly above zero and {glue:text}`below` one wholly below; by chance alone,
# {glue:text}`chance` of them would have one or the other. The largest mean difference is
# {glue:text}`best`, the smallest {glue:text}`worst`. With so few seeds, intervals are wide:
# read the figure for what it rules out, not for a winner. It is a small network on drawings,
# from random weights and for a few epochs, far from the papers' setting.
#
# ## Exact in every precision
#
# The mixed loss of every row of the table, with all four kinds of pairs, beside two plain
# loops over anchors and pairs that make every mixed vector, in double precision: the
# largest relative difference of value and of gradient. Below float32, the loss is computed
# in float32 and its gradient is rounded to the embeddings' precision.

# %% tags=["hide-input"]
parity = pd.read_csv(runs.ROOT / "results" / "parity.csv")
mixed = parity[parity["mixing"] == "embedding"]
wide = mixed.pivot(index="loss", columns="precision", values=["value", "gradient"])
wide = wide.swaplevel(axis=1)[
    [(p, what) for p in parity["precision"].unique() for what in ("value", "gradient")]
]
wide.style.format("{:.0e}")

# %% [markdown]
# ## What we saw
#
# The spaces differ in what runs again on a mixture, and only input mixup pays for the
# backbone. Each departure of the released code could be shown in a few lines. In our small
# trial {glue:text}`above` of {glue:text}`variants` variants did better than the baseline
# beyond the error bars, and {glue:text}`below` did worse.
#
# ## Exercises
#
# 1. `make run DATASET=glyphs-small MIX=embed SET="weight=0.05 tag=small.w=0.05"`, for the
#    seeds above, then build the book: the variant is in {numref}`fig-ablation`.
# 2. Why is $k$ = all cheap for embeddings and not for features?
# 3. Repair the lookup of hard negatives in one token.
