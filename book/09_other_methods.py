# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# (ch-methods)=
# # Mixing methods differ in who is mixed and in what becomes of the label
#
# Metrix was neither the first to mix in metric learning nor the last. By the end of
# this page you will have six other methods in the language of {eq}`eq-generic`, each in
# a few lines, know which of them is a special case of it and which is not, and see them
# beside the baseline and Metrix on equal terms, with the number of comparisons counted.
#
# > This task is challenging because, unlike classification, the loss functions used in
# > metric learning are not additive over examples, so the idea of interpolating target
# > labels is not straightforward.
# >
# > — Metrix {cite:p}`venkataramanan2022metrix`, abstract

# %% tags=["remove-cell"]
import inspect

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from IPython.display import Code, Markdown
from myst_nb import glue

from dml import losses, mixing_methods, plot, runs

plot.use_style()

# %% tags=["parameters"]
seed: int = 0  # of the random numbers below
lam: float = 0.3  # lambda of the worked examples
dataset: str = "glyphs"  # of the comparison
tag: str = "methods"  # of its runs
wider: str = "methods32"  # tag of the same runs on larger images
folds: int = 4  # in which the training classes were divided to choose settings
metric: str = "recall_at_1"  # by which methods are compared

# %% [markdown]
# ## Six answers to two questions
#
# | method | who is mixed | in | what the mixture is | losses |
# |---|---|---|---|---|
# | Metrix {cite:p}`venkataramanan2022metrix` | pairs of each anchor | any space | its label $\lambda y + (1 - \lambda) y'$, inside the loss | all |
# | i-Mix {cite:p}`lee2021imix` | any two | images | an anchor; the *loss* is interpolated | all |
# | IDML {cite:p}`wang2023idml` | any two | images | an example; the loss is interpolated | all |
# | mixup {cite:p}`zhang2018mixup` | any two | images | an example to classify; both at once | all, beside them |
# | MoCHi {cite:p}`kalantidis2020mochi` | negatives, or the anchor and one | embeddings | a negative | all |
# | Embedding Expansion {cite:p}`ko2020expansion` | two of a class | embeddings | one more of the class | of pairs |
# | Proxy Synthesis {cite:p}`gu2021synthesis` | two classes, their proxies alike | embeddings | a new class | of proxies |
#
# Most were made for another task or for a few losses. What follows is each method's
# mixing as its paper has it, for every loss where it has a meaning; where that took a
# decision, it is said.
#
# ## Interpolating the loss
#
# Let $\tilde x$ be mixed from $x$ and $x'$, with labels $y$ and $y'$. Instead of one
# loss with a mixed label, take two losses with hard ones:
#
# $$
# \lambda\, \ell(\tilde x; y) + (1 - \lambda)\, \ell(\tilde x; y') .
# $$ (eq-loss-mixing)
#
# For cross-entropy it is the same thing, and that is plain mixup. For a metric loss,
# $\ell(\tilde x; y)$ needs others to compare $\tilde x$ with: the unmixed batch in
# i-Mix, where the mixture is an anchor and $\lambda \ge 1/2$; the other mixtures in
# IDML;
# class vectors in a classifier. In code, that is all that tells the three apart:

# %% tags=["hide-input"]
Code(
    "\n".join(
        inspect.getsource(method.judge)
        for method in (
            mixing_methods.LossMixing,
            mixing_methods.IMix,
            mixing_methods.MixupCrossEntropy,
        )
    ),
    language="python",
)

# %% [markdown]
# When is it Metrix after all? Where the loss is linear in the labels. Contrastive is,
# multi-similarity has a logarithm around its sum:

# %%
torch.manual_seed(seed)
x, labels = F.normalize(torch.randn(100, 32, dtype=torch.float64), dim=1), torch.arange(100) // 5
partners = torch.randperm(100)
same = (labels[:, None] == labels).double()
similarity = F.normalize(lam * x + (1 - lam) * x[partners], dim=1) @ x.T
label = lam * same + (1 - lam) * same[partners]
differences = {}
for name in ("contrastive", "multi_similarity"):
    loss = losses.build(name, 20, 32)
    imix = mixing_methods.IMix(loss, weight=1.0)
    of_losses = imix(x, labels, lam=lam, partners=partners) - loss(x, labels)
    of_labels = loss.reduce(similarity, label, torch.ones(100, 100).bool())
    differences[name] = (of_losses - of_labels).abs().item()
assert differences["contrastive"] < 1e-9 < differences["multi_similarity"]
differences

# %% [markdown]
# (absolute difference between interpolating losses and interpolating labels, on a
# random batch). Two more decisions. The i-Mix paper trains on {eq}`eq-loss-mixing`
# alone; here it
# comes beside the clean loss with a weight, as in IDML, so that all methods share the
# clean term. And it draws a $\lambda$ for each image, here one for a batch: a proxy
# that is an anchor sums over all mixtures before its logarithm, where a factor for each
# image
# has no place. Of IDML this is the mixing; its model of uncertainty is another subject.
#
# ## A negative, whatever is in it
#
# MoCHi mixes hard negatives $n, n'$ with each other and with the anchor $a$, and adds
# the results to the negatives of the same sum:
#
# $$
# \mathrm{mix}_\lambda(n, n'),\ \lambda \sim U(0, 1), \qquad
# \mathrm{mix}_\lambda(a, n),\ \lambda \sim U(0, 1/2), \qquad y = 0 .
# $$ (eq-mochi)
#
# Those are two of the kinds of pairs of {ref}`ch-interpolating` with label 0, and
# {eq}`eq-gram` serves them as well. What that label does to a mixture with a good share
# of the anchor is {numref}`fig-three-labels`.

# %% tags=["hide-input"]
Code(inspect.getsource(mixing_methods.MoCHi.negatives), language="python")

# %%
s = torch.linspace(-0.2, 1, 200, dtype=torch.float64)
loss = losses.multi_similarity()


def pull(positive, negative):
    """-dl/ds on one mixed candidate that counts as this much of each."""
    s_ = s.clone().requires_grad_()
    weight = torch.tensor([[positive, negative]], dtype=s.dtype).expand(len(s), 2)
    value = loss.combine(s_[:, None], weight[:, :1], weight[:, 1:])
    return -torch.autograd.grad(value.sum(), s_)[0]


lams = (0.1, 0.5, 0.9)
forms = {
    "Metrix: the label": {t: pull(t, 1 - t) for t in lams},
    "i-Mix, IDML: the loss": {t: t * pull(1, 0) + (1 - t) * pull(0, 1) for t in lams},
    "MoCHi: a negative": {t: pull(0, 1) for t in lams},
}

# %% tags=["hide-input"] mystnb={"figure": {"caption": "The pull of a mixture, alone with its anchor, under multi-similarity, by its similarity to the anchor: with an interpolated label, an interpolated loss, and as a negative. Above zero it attracts, below it repels. Lambda is the share of the positive, or of the anchor.", "name": "fig-three-labels"}, "image": {"alt": "Three panels. With an interpolated label the curves for three lambdas cross zero near the margin, close together; with an interpolated loss they do so further apart; as a negative all coincide and only repel."}}
plot.pull_by_lambda(s, forms)

# %% [markdown]
# ## One more of the class
#
# Embedding Expansion divides the line between two embeddings of a class into
# $n + 1$ equal parts and lets the $n$ points between, $\bar{P}_c$ together with the
# class's own embeddings, speak for the class $c$: the similarity of an anchor to a
# negative becomes that of the closest pair of points of the two classes,
#
# $$
# s(a, x) \;\to\; \max_{u \in \bar P_{c(a)},\, v \in \bar P_{c(x)}} s(u, v)
# \qquad \text{where } c(a) \ne c(x) .
# $$ (eq-expansion)
#
# Nothing is random and no label is mixed: it is mining among points that do not exist.
# It needs two examples of a class on either side, so it has no meaning for a proxy.
# On the random batch, the more points, the harder the negatives:

# %%
negative = labels[:, None] != labels
harder = {"no expansion": (x @ x.T)[negative].mean().item()}
for n in (0, 1, 2, 5):
    hardest = mixing_methods.EmbeddingExpansion(losses.contrastive(), n).hardest(x, labels)
    harder[f"n = {n}"] = hardest[negative].mean().item()
pd.Series(harder, name="mean similarity of negatives").round(3)

# %% [markdown]
# ($n = 0$ is the hardest pair of two classes without any synthetic point.)
#
# ## A class of its own
#
# Proxy Synthesis mixes examples $x_i, x_j$ of two classes and, with the same $\lambda$,
# the proxies $p$ of these classes, and calls the result a new class:
#
# $$
# \tilde x = \mathrm{mix}_\lambda(x_i, x_j), \qquad
# \tilde p = \mathrm{mix}_\lambda(p_{y_i}, p_{y_j}), \qquad
# \tilde y \text{ new} .
# $$ (eq-synthesis)
#
# The loss is the clean loss of the enlarged problem, so it is a special case of
# {eq}`eq-generic` with hard labels, but it has no meaning without proxies. With the
# authors' $\lambda \sim \mathrm{Beta}(0.4, 0.4)$ many new classes nearly coincide with
# old ones. For orthogonal proxies the cosine follows from $\lambda$ alone:

# %%
settings = inspect.signature(mixing_methods.ProxySynthesis).parameters
alpha = settings["alpha"].default
drawn = np.random.default_rng(seed).beta(alpha, alpha, 100_000)
larger = np.maximum(drawn, 1 - drawn)
cosine = larger / np.hypot(drawn, 1 - drawn)  # of the new proxy to the nearer old one
shares = {f"cosine > {c}": f"{(cosine > c).mean():.0%}" for c in (0.9, 0.95, 0.99)}
pd.Series(shares, name="new classes")

# %% [markdown]
# There, an image is told to avoid what is in effect its own proxy.
#
# ## Beside each other
#
# All train in the notebook of {ref}`ch-training` under their names (`mix=imix`,
# `mochi`, `embedding_expansion`, `proxy_synthesis`, `input_ce`, `idml`), with equal
# networks, batches and epochs; equal seeds start from equal weights and see equal
# batches, since a method's random numbers come from a generator of its own. Each seed
# divides the classes into training and test classes anew, so that an interval speaks of
# other classes as well as of other weights.
#
# A method's own settings were chosen without the test classes: a weak one and a usual
# one (the weight of the mixed loss; MoCHi's number of negatives; Proxy Synthesis's
# $\alpha$), on two folds of the training classes (`book/recipes/grid-methods-validation.yaml`).
# What each gave there, beside the baseline of the same fold, in points:

# %% tags=["hide-input"]
trials = runs.load(dataset=dataset, profile="paper", folds=folds)
trials = trials[trials["tag"].str.split(".").str[0] == tag]
held_out = trials[trials["mix"] == "none"].set_index(["loss", "fold"])[metric]
trials["gain"] = 100 * (
    trials[metric] - [held_out.get(key) for key in zip(trials["loss"], trials["fold"], strict=True)]
)
trials["setting"] = trials["tag"].str.removeprefix(tag).str.removeprefix(".")
chosen = trials[trials["mix"] != "none"].groupby(["loss", "mix", "setting"])["gain"].mean()
best = chosen.groupby(["loss", "mix"]).idxmax().map(lambda key: key[-1])
shown = pd.DataFrame({"chosen": best, "its gain": chosen.groupby(["loss", "mix"]).max()})
shown["the other's"] = chosen.groupby(["loss", "mix"]).min()
shown.rename(index=runs.METHODS, level="mix").style.format(
    "{:+.1f}", subset=["its gain", "the other's"]
)

# %% [markdown]
# Two folds choose between two settings; they are too few to rank methods. The runs that
# are compared are those of `book/recipes/grid-methods.yaml`.

# %% tags=["hide-input"]
table = runs.load(dataset=dataset, tag=tag, profile="paper", folds=0)
gains = runs.named(runs.gains(table, metric))
Markdown(
    f"{len(table)} runs: {table['loss'].nunique()} losses, {table['mix'].nunique()} methods, "
    "the baseline among them."
    if len(table)
    else "No record yet: `make sweep GRID=book/recipes/grid-methods.yaml` makes them."
)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "What each method adds to the baseline of the same seed and loss: mean difference in Recall@1 on unseen classes of a part of glyphs, and its 95 % confidence interval (Student's t), not corrected for the number of comparisons.", "name": "fig-methods"}, "image": {"alt": "A forest plot: a point and an interval for each mixing method, in a group for each loss, around a vertical line at no difference; or the words no runs yet."}}
plot.forest(gains)

# %% [markdown]
# So many comparisons find something by chance. Holm's correction asks that all of them
# together do so in at most 5 % of the cases: the smallest $p$ is multiplied by their
# number, the next by one less, and so on. And before a difference is called absent, one
# should know which could have been seen: with $n$ seeds whose paired differences
# deviate by $\sigma$, a true difference of $(t_{0.975} + t_{0.8})\, \sigma / \sqrt{n}$
# is found in about 80 % of the cases.

# %% tags=["hide-input"]
several = runs.tested(gains)
shown = ["group", "label", "seeds", "mean", "std", "low", "high", "detectable", "p", "holm"]
several[shown].style.format(precision=2).format("{:.3f}", subset=["p", "holm"]).hide(axis="index")

# %% tags=["remove-cell"]
glue("methods-verdict", runs.verdict(several), display=False)

# %% [markdown]
# {glue:text}`methods-verdict`
#
# The means themselves, with their standard deviation over seeds, in per cent:

# %% tags=["hide-input"]
Markdown(runs.markdown(runs.summary(table)) if len(table) else "No runs yet.")

# %% [markdown]
# ## On larger images
#
# Is this a matter of small images? The same methods, with the settings chosen above, at
# {glue:text}`size-wider` pixels in place of {glue:text}`size`
# (`book/recipes/grid-methods-32.yaml`):

# %% tags=["hide-input"] mystnb={"figure": {"caption": "The comparison again on larger images: what each method adds to the baseline of the same seed and loss, as above.", "name": "fig-methods-wider"}, "image": {"alt": "A forest plot: a point and an interval for each mixing method, in a group for each loss, around a vertical line at no difference; or the words no runs yet."}}
larger = runs.load(dataset=dataset, tag=wider, profile="paper", folds=0)
larger_gains = runs.named(runs.gains(larger, metric))
plot.forest(larger_gains)

# %% tags=["hide-input"]
larger_several = runs.tested(larger_gains)
larger_several[shown].style.format(precision=2).format("{:.3f}", subset=["p", "holm"]).hide(
    axis="index"
)

# %% tags=["remove-cell"]
glue("wider-verdict", runs.verdict(larger_several), display=False)
both = several.merge(larger_several, on=["loss", "mix"], suffixes=("", "_wider"))
related = both[["mean", "mean_wider"]].corr(method="spearman").iloc[0, 1]
glue("wider-order", f"{related:+.2f}", display=False)
for name, of in {"": table, "-wider": larger}.items():
    options = of["dataset_options"].iloc[0] if len(of) else {}
    glue(f"size{name}", options.get("size"), display=False)
    baselines = 100 * of[of["mix"] == "none"].groupby("loss")[metric].mean()
    words = ", ".join(f"{key.replace('_', ' ')} {value:.1f}" for key, value in baselines.items())
    glue(f"baselines{name}", words, display=False)

# %% [markdown]
# {glue:text}`wider-verdict` The baselines' own Recall@1, in per cent, went from
# {glue:text}`baselines` to {glue:text}`baselines-wider`. The rank correlation of the
# mean differences at the two sizes, over losses and methods, is
# {glue:text}`wider-order`: near one, the order of the methods would be a property of
# the methods; near zero, it is noise or a matter of size.
#
# ## What the paper compares
#
# The authors of Metrix compare i-Mix with their input mixup and MoCHi with their
# embedding mixup, both with the contrastive loss, ResNet-50 and 512 dimensions:
# Recall@1 in per cent, one run each, the best epoch on the test classes. The last
# column is ours, contrastive on glyphs with the small network. Only the order can be
# compared.

# %% tags=["hide-input"]
published = pd.read_csv(runs.ROOT / "results" / "published" / "mixing_methods.csv")
beside = published.pivot_table(
    index=["space", "method"], columns="dataset", values="percent", sort=False
)
means = 100 * table[table["loss"] == "contrastive"].groupby("mix")[metric].mean()
names = {"contrastive": "none", "i-mix": "imix", "mochi": "mochi"}
ours = [means.get(names.get(method, space), float("nan")) for space, method in beside.index]
beside[f"{dataset} (here)"] = ours
beside.style.format("{:.1f}", na_rep="no run yet")

# %% [markdown]
# ## What we saw
#
# The methods answer two questions, and one module of a few hundred lines holds them
# all: i-Mix, IDML and plain mixup interpolate the loss, which is Metrix's label where
# the loss is linear; MoCHi is Metrix's pairs with label 0; Embedding Expansion is
# mining; Proxy Synthesis is a larger problem. {glue:text}`methods-verdict` On larger
# images: {glue:text}`wider-verdict` This is a small network on drawings, from random
# weights, far from the papers' setting, and the hyper-parameters were chosen between
# two values each, on the smaller images.
#
# ## Exercises
#
# 1. Give MoCHi's anchor-negative mixtures the label $\lambda$ instead of 0. Which
#    method do you have?
# 2. `make run DATASET=glyphs-small LOSS=proxy_anchor MIX=proxy_synthesis SET="alpha=2.0
#    tag=methods.alpha=2"`: does it help to keep the new classes away from the old ones?
# 3. Choose $w$ for i-Mix without looking at the test classes: `folds=4` and the four
#    values of `fold` ({ref}`ch-training`).
