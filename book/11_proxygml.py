# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# (ch-proxygml)=
# # A few proxies decide, and a matrix of all is not needed
#
# ProxyGML gives a class several proxies, lets an example see only the most similar few
# of all, and lets their labels flow back to it. By the end of this page you will have
# seen that graph for a real example, what its two parameters do, which of its parts
# matter, and why a step of it need not cost what the released code makes it cost.
#
# > Fewer is More: A Deep Graph Metric Learning Perspective Using Fewer Proxies
# >
# > — the title of the paper {cite:p}`zhu2020proxygml`

# %% tags=["remove-cell"]
import inspect

import pandas as pd
import torch
import torch.nn.functional as F
from IPython.display import Code
from myst_nb import glue
from sklearn.manifold import TSNE

from dml import data, plot, proxygml, runs, train

plot.use_style()
PUBLISHED = runs.ROOT / "results" / "published"

# %% tags=["parameters"]
classes: int = 60  # of glyphs, half of them to train on, for the two pictures
epochs: int = 8  # of that short training
proxies_per_class: int = 4  # N, there
r: float = 0.1  # part of all proxies that an example keeps, there
mapped: int = 10  # classes on the map
seed: int = 0  # of all that is random

# %% [markdown]
# ## The formula
#
# There are $N$ proxies $w$ of each of $C$ classes. An example $x_i$ keeps the
# $k = \lceil r C N \rceil$ proxies $K(i)$ that are most similar to it, its own class's
# always among them. Labels flow back along these edges: a class's score is the sum of
# the similarities that were kept,
#
# $$
# Z_{ij} = \sum_{p \in K(i),\; y_p = j} s(x_i, w_p).
# $$ (eq-propagation)
#
# A class without an edge is not a candidate, so the softmax runs over the others alone,
#
# $$
# P(j \mid i) = \frac{M_{ij} \, e^{Z_{ij}}}{\sum_{j'} M_{ij'} \, e^{Z_{ij'}}}, \qquad
# M_{ij} = 1 \text{ if class } j \text{ has a proxy in } K(i), \text{ else } 0,
# $$ (eq-masked-softmax)
#
# and proxies are held together by a cross-entropy of their own, weighed by $\lambda$:
#
# $$
# \mathcal{L} = \frac{1}{B} \sum_i -\log P(y_i \mid i)
# + \frac{\lambda}{C N} \sum_p -\log
# \frac{\exp \sum_n s(w_p, w_{y_p n})}{\sum_j \exp \sum_n s(w_p, w_{jn})}.
# $$ (eq-proxygml)
#
# In code, $-\log P(y \mid x)$ of a batch, for one class an example or (see below) two:

# %% tags=["hide-input"]
Code(inspect.getsource(proxygml.ProxyGML.per_example), language="python")

# %% [markdown]
# With one proxy a class, all kept and no $\lambda$, this is a plain softmax:

# %%
torch.manual_seed(seed)
x, y = torch.randn(32, 16, dtype=torch.float64), torch.arange(32) % 8
plain = proxygml.ProxyGML(8, 16, proxies_per_class=1, r=1.0, weight_lambda=0.0).double()
cosine = F.normalize(x, dim=1) @ F.normalize(plain.proxies[:, 0], dim=1).T
assert torch.allclose(plain(x, y), F.cross_entropy(cosine, y))

# %% [markdown]
# ## The graph of one example
#
# A small network, trained for a few seconds on a part of glyphs. Here is what one of
# its training images keeps, and what flows back.

# %% tags=["remove-stderr"]
sets = data.load("glyphs", classes=classes, size=16)
config = train.Config(
    dataset_options={"classes": classes, "size": 16}, loss="proxygml", mix="none",
    loss_options={"proxies_per_class": proxies_per_class, "r": r}, epochs=epochs,
    batch_size=50, eval_every=epochs, seed=seed, device="cpu",
)  # fmt: skip
parts, _ = train.fit(config, sets)
loss = parts.criterion
z = train.embed(parts.network, sets.train, config, torch.device("cpu")).clone()
labels = sets.train.labels

# %%
with torch.inference_mode():
    similarity, index = loss.graph(z, labels[:, None])  # (n, k), (n, k)
of_class = index // proxies_per_class
candidates = torch.tensor([len(row.unique()) for row in of_class])  # classes, each graph


def flows(i):
    """What flows back to example i, a class a row, its own first."""
    rows = []
    for c in of_class[i].unique().tolist():
        kept = similarity[i, of_class[i] == c].sort(descending=True).values
        rows.append({"picture": sets.train.images[labels == c][0], "own": c == labels[i],
                     "similarity": kept, "score": kept.sum().item()})  # fmt: skip
    chances = torch.tensor([row["score"] for row in rows]).softmax(0)
    rows = [row | {"probability": p.item()} for row, p in zip(rows, chances, strict=True)]
    return sorted(rows, key=lambda row: (row["own"], row["score"]), reverse=True)


one = int((candidates == candidates.max()).nonzero()[0])

# %% tags=["hide-input"] mystnb={"figure": {"caption": "The graph of one training image: the proxies that it keeps, with their similarities, and the classes to which their labels flow, with the sum of what arrives, Z, and the masked softmax of it, P. Its own class has all of its proxies in the graph (blue). A class that is not drawn is not a candidate.", "name": "fig-label-flow"}, "image": {"alt": "On the left the image of a character; lines lead to a column of dots, its kept proxies, and from there to the characters of their classes on the right, each with a score and a probability. The own class, at the top, has the largest."}}
plot.label_flow(sets.train.images[one], flows(one))

# %% tags=["remove-cell"]
glue("k", loss.kept, display=False)
glue("all_proxies", len(sets.train.classes) * proxies_per_class, display=False)
glue("candidates", candidates.float().mean().item(), display=False)
glue("train_classes", len(sets.train.classes), display=False)

# %% [markdown]
# Each example keeps {glue:text}`k` of {glue:text}`all_proxies` proxies. On average
# {glue:text}`candidates:.1f` of {glue:text}`train_classes` classes are candidates: the
# softmax is spent on those that could be confused.
#
# Where the proxies went: the embeddings of a few training classes and their proxies.

# %% tags=["hide-input", "remove-stderr"] mystnb={"figure": {"caption": "Embeddings of the images of some training classes and the proxies of these classes, in the plane by t-SNE of their cosine distances; a colour a class.", "name": "fig-proxy-map"}, "image": {"alt": "A scatter plot with a cluster of dots for each class and stars, the class's proxies, in or beside its cluster."}}
some = labels < mapped
w = F.normalize(loss.proxies.detach()[:mapped].flatten(0, 1), dim=1)
points = torch.cat([z[some], w])
tsne = TSNE(metric="cosine", init="pca", perplexity=15, random_state=seed)
plane = tsne.fit_transform(points.numpy())
n = int(some.sum())
owner = torch.arange(len(w)) // proxies_per_class
plot.proxy_map(plane[:n], labels[some].tolist(), plane[n:], owner.tolist())

# %% tags=["remove-cell"]
unit = F.normalize(loss.proxies.detach(), dim=2)
within = (unit @ unit.mT).mean().item()
between = (unit.flatten(0, 1) @ unit.flatten(0, 1).T).mean().item()
glue("within", within, display=False)
glue("between", between, display=False)

# %% [markdown]
# The proxies of one class have an average cosine of {glue:text}`within:.2f` with each
# other (any two proxies: {glue:text}`between:.2f`). They all but coincide, and the
# formula says why: an example of the class always keeps all of them, their similarities
# enter one sum, so each gets the same pull. With $N$ coinciding proxies the own class's
# score is $N s(x, w)$: for its own class, $N$ is less a number of modes than the
# *temperature* of the softmax.
#
# ## The effect of N and r
#
# On a part of glyphs, with small images and all else as chosen below; beside it, what
# can be read off the paper's figures for Cars-196 with a pretrained network. The runs
# are made by `make sweep GRID=book/recipes/grid-proxygml.yaml`.

# %% tags=["remove-cell"]
table = runs.load(dataset="glyphs", profile="paper", folds=0)
table = table[table["tag"].str.startswith("proxygml")]
options = pd.DataFrame(table["loss_options"].tolist(), index=table.index)
table = table.assign(N=options["proxies_per_class"], r=options["r"])
ours = table[(table["loss"] == "proxygml") & (table["mix"] == "none")]
chosen = ours[ours["tag"] == "proxygml"]  # five seeds; three in what it is compared with
base = chosen[chosen["seed"] < 3]
N, part = int(chosen["N"].iloc[0]), chosen["r"].iloc[0]
varied = pd.concat([base, ours[ours["tag"].str.startswith("proxygml.N=")]])
sweeps = {
    "N": varied[varied["r"] == part].rename(columns={"N": "value"}),
    "r": varied[varied["N"] == N].rename(columns={"r": "value"}),
}
C = len(data.load("glyphs", **chosen["dataset_options"].iloc[0]).train.classes)
alone = {"r": 1 / C}

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Recall@1 by N (left) and by r (right): here the mean over up to three seeds and their range, small network from random weights on a part of glyphs; the paper's points for Cars-196, read off its figures. Where r is at most 1/C (shaded), only proxies of the own class fit into the graph.", "name": "fig-n-and-r"}, "image": {"alt": "Two panels with two curves each, Recall@1 by the number of proxies a class and by the part of proxies kept; a narrow shaded strip at the left of the second panel."}}
published = pd.read_csv(PUBLISHED / "proxygml_curves.csv")
plot.proxy_sweeps(sweeps, published, alone)

# %% tags=["remove-cell"]
for parameter, runs_of in sweeps.items():
    best = runs_of.groupby("value")["recall_at_1"].mean().idxmax()
    glue(f"best_{parameter}", f"{best:g}", display=False)
    glue(f"tried_{parameter}", runs_of["value"].nunique(), display=False)

# %% [markdown]
# Of {glue:text}`tried_N` values of $N$ and {glue:text}`tried_r` of $r$ that have been
# run, $N$ = {glue:text}`best_N` and $r$ = {glue:text}`best_r` have the highest
# Recall@1.
#
# The paper's curve falls steeply at its smallest $r$, and there is a reason: at
# $r \le 1 / C$ the graph has room for the own class alone. Then its softmax runs over one
# class, $P = 1$, and {eq}`eq-proxygml` has nothing to say but its regulariser. On
# Cars-196, $\lceil 0.01 \cdot 98 \cdot 12 \rceil = 12 = N$:

# %%
torch.manual_seed(seed)
cars = proxygml.ProxyGML(98, 16, proxies_per_class=12, r=0.01, weight_lambda=0.0)
x = torch.randn(32, 16, requires_grad=True)
value = cars(x, torch.arange(32))
assert cars.kept == 12 and value.abs() < 1e-5
assert torch.autograd.grad(value, x)[0].abs().max() < 1e-6

# %% [markdown]
# ## Which part matters
#
# Without the positive mask the own class's proxies are kept only if they are similar
# enough; without the softmax's mask all classes are candidates, those that are not in
# the graph with score 0; without the regulariser $\lambda = 0$. Mean over up to three
# seeds (and standard deviation), in per cent, beside the paper's table for Cars-196:

# %% tags=["hide-input"]
yes = {True: "yes", False: "no"}
parts_of = pd.DataFrame(ours["loss_options"].tolist(), index=ours.index)
settings = {
    "positive_mask": parts_of.get("positive_bonus", pd.Series(index=ours.index)).isna().map(yes),
    "mask": parts_of.get("masked", pd.Series(index=ours.index)).ne(False).map(yes),
    "regulariser": parts_of.get("weight_lambda", pd.Series(index=ours.index)).ne(0.0).map(yes),
}
ablated = ours.assign(**settings)
ablated = ablated[(ablated["N"] == N) & (ablated["r"] == part) & (ablated["seed"] < 3)]
by = list(settings)
groups = 100 * ablated.set_index(by)[["nmi", "recall_at_1"]]
mean, std = groups.groupby(by).mean(), groups.groupby(by).std()
rows = pd.read_csv(PUBLISHED / "proxygml_ablation.csv").set_index(by)
for metric, name in (("nmi", "NMI"), ("recall_at_1", "R@1")):
    cells = mean[metric].map("{:.1f}".format) + " (" + std[metric].map("{:.1f}".format) + ")"
    rows[f"{name}, glyphs"] = cells.str.replace(" (nan)", "")
rows = rows.rename(columns={"NMI": "NMI, Cars-196 (paper)", "R@1": "R@1, Cars-196 (paper)"})
rows.reset_index().style.format(precision=1, na_rep="not run yet").hide(axis="index")

# %% [markdown]
# ## Beside Proxy Anchor and SoftTriple
#
# SoftTriple {cite:p}`qian2019softtriple` has several centres a class, too, and compares
# with all of them; Proxy Anchor {cite:p}`kim2020proxyanchor` has one. Equal network,
# batches, epochs; for each loss nine settings (the proxies' learning rate and a
# parameter or two of its own) were tried on two folds of the *training* classes, and
# the best of them is trained on all of these and tested on the others, five seeds.
# `embed` and `feature` are ProxyGML with mixed examples, which is our own extension: a
# mixture keeps the proxies of both parents' classes, labels flow back from both, and
# the target has $\lambda$ and $1 - \lambda$ of them.

# %% tags=["hide-input"]
compared = table[table["tag"] == "proxygml"]
shown = runs.summary(
    compared, ("nmi", "recall_at_1", "recall_at_2", "recall_at_4"), ("loss", "mix")
)
names = {"nmi": "NMI", "recall_at_1": "R@1", "recall_at_2": "R@2", "recall_at_4": "R@4"}
cells = shown[["loss", "mix", "runs"]].copy()
for metric, name in names.items():
    cells[name] = [
        f"{m:.1f} ± {s:.1f}" for m, s in zip(shown[metric], shown[f"{metric}_std"], strict=True)
    ]
cells.sort_values(["mix", "loss"], key=lambda column: column != "none", kind="stable").style.hide(
    axis="index"
)


# %% tags=["remove-cell"]
def against(other: pd.DataFrame) -> str:
    """How far the chosen ProxyGML is from other runs, seed by seed."""
    pair = chosen.set_index("seed")["recall_at_1"] - other.set_index("seed")["recall_at_1"]
    if pair.isna().all():
        return "no runs yet"
    gap, spread = 100 * pair.mean(), 100 * pair.std()
    word = "more" if gap > 0 else "less"
    return f"{abs(gap):.1f} points {word} (standard deviation of the difference {spread:.1f})"


plain = compared[compared["mix"] == "none"]
for name in ("proxy_anchor", "soft_triple"):
    glue(f"against_{name}", against(plain[plain["loss"] == name]), display=False)
for mix in ("embed", "feature"):
    mixed = compared[(compared["loss"] == "proxygml") & (compared["mix"] == mix)]
    glue(f"against_{mix}", against(mixed), display=False)

# %% [markdown]
# In Recall@1, ProxyGML has {glue:text}`against_proxy_anchor` than Proxy Anchor and
# {glue:text}`against_soft_triple` than SoftTriple. It has {glue:text}`against_embed`
# than itself with mixed embeddings, and {glue:text}`against_feature` than with mixed
# feature maps. This is a small network from random weights; it says nothing about the
# papers' setting, whose table follows.

# %% tags=["hide-input"]
papers = pd.read_csv(PUBLISHED / "proxygml.csv")
papers.pivot_table(
    index=["dataset", "embedding_size"], columns="metric", values="percent", sort=False
).style.format("{:.1f}", na_rep="")

# %% [markdown]
# (BN-Inception, 384 and 64 dimensions besides 512; in per cent.) The recipes
# `proxygml-cub`, `proxygml-cars` and `proxygml-sop` have the settings of the authors'
# commands, `proxygml-folder` the same for images in class folders. Neither timm nor
# torchvision has BN-Inception, so they use ResNet-50; none of them has been run here.
#
# ## What it costs
#
# The released code multiplies by one-hot matrices. Written as in {eq}`eq-proxygml`, a
# step has edges, not matrices: $B \times k$ similarities are added up by class, and the
# softmax runs over the edges, each standing for one part in as many as its class has.
# The regulariser adds each class's proxies first and multiplies once.

# %% tags=["hide-input"]
Code(inspect.getsource(proxygml.Propagate), language="python")

# %% [markdown]
# `benchmarks/proxygml.py` (part of `make bench`) measures a step, forward and backward,
# a batch of 32, beside the released formulation: CPU time on one thread as a ratio
# within interleaved rounds, and memory beyond embeddings and proxies (gradients, and
# what is in between).

# %% tags=["hide-input"]
cost = pd.read_csv(runs.ROOT / "results" / "benchmarks" / "proxygml.csv")
cost.style.hide(axis="index").format(precision=1, na_rep="does not fit")

# %% tags=["remove-cell"]
slower = cost[cost["method"] == "released"].set_index("size")["time / dml"]
glue("slower_cub", float(slower["cub"]), display=False)
glue("slower_sop", float(slower["sop"]), display=False)

# %% [markdown]
# The released formulation takes {glue:text}`slower_cub:.1f` times as long at CUB's size
# and {glue:text}`slower_sop:.1f` times at SOP's, and is not tried where its one-hot
# labels alone (last column) are too large. Ours goes on to a million proxies.
#
# ## What released code computes
#
# Three particulars of it are not the paper. **The mask** is the scores that are not
# exactly 0, where the paper means classes in the graph. They part where scores cancel:

# %%
loss = proxygml.ProxyGML(2, 2, proxies_per_class=2, r=1.0, weight_lambda=0.0)
loss.proxies.data = torch.tensor([[[0.0, 1.0], [0.0, -1.0]], [[1.0, 0.0], [1.0, 0.0]]])
x = torch.tensor([[0.6, 0.8]])  # scores 0 and 1.2; of class 0
score = torch.tensor([[0.0, 1.2]])
weight = (score != 0) * score.exp()
released = -(weight[:, 0] / weight.sum(1) + 1e-20).log()
{"paper": loss(x, torch.tensor([0])).item(), "released": released.item()}

# %% [markdown]
# **The positive mask** adds 1000, where the paper adds 1. Cosines differ by 2 at most,
# so that 1000 keeps the own class's proxies always, which is what the mask is for and
# what `ProxyGML` does; 1 loses a proxy that is less similar by more than 1 than the
# $k$-th. How many of the own proxies it loses, before training and on the network
# above:


# %%
def lost(proxies, z):
    """Part of the own class's proxies that a bonus of 1 leaves out."""
    one = proxygml.ProxyGML(len(proxies), z.shape[1], proxies_per_class, r, positive_bonus=1.0)
    one.proxies.data = proxies
    own = one.graph(z, labels[:, None])[1] // proxies_per_class == labels[:, None]
    return 1 - own.sum().item() / (len(z) * proxies_per_class)


fresh = train.build(config, sets, torch.device("cpu"))
start = train.embed(fresh.network, sets.train, config, torch.device("cpu")).clone()
{
    "before": lost(fresh.criterion.proxies.data, start),
    "after": lost(parts.criterion.proxies.data, z),
}

# %% [markdown]
# **The warm-up**, in which only the embedding layer and the proxies learn, comes after
# the first epoch rather than before it: epoch 0 trains everything, epoch 1 the head
# alone. The recipes have no warm-up.
#
# ## What we saw
#
# A step that is written by edges costs what its edges cost, to a million proxies. A
# class's proxies all but coincide, so that $N$ acts as a temperature, and $r$ must
# exceed $1 / C$ for anything to be learnt. In Recall@1 on a part of glyphs ProxyGML has
# {glue:text}`against_proxy_anchor` than Proxy Anchor and
# {glue:text}`against_soft_triple` than SoftTriple, each with settings chosen on
# validation classes.
#
# ## Exercises
#
# 1. Set `r` to 0.02 in the parameters above. What does {numref}`fig-label-flow` show,
#    and why is the loss what it is?
# 2. If $N$ is a temperature, ProxyNCA++ with `temperature=1 / N` and all proxies below
#    the line should do much the same as `r=1.0`. Does it?
# 3. Where would proxies of one class part? Think of a loss whose own-class sum is a
#    maximum.
