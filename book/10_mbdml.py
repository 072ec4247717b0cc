# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# (ch-mbdml)=
# # Kernels at the labelled images, and mixup between them
#
# Label a tenth of a training set and a network memorises it. MbDML
# {cite:p}`buris2022mbdml` classifies by Gaussian kernels at the labelled images
# {cite:p}`meyer2018nngk`, and fills the space between them with mixed images
# {cite:p}`zhang2018mixup`. By the end of this page you will have seen the classifier, its
# three combinations with mixup, where the released code computes something else, and a
# table of ten methods in which the differences have a spread.
#
# > we introduce variants that take advantage of Mixup to cope with metric learning in
# > incomplete supervision scenarios.
# >
# > — the authors' README
#
# This page is also the program: papermill makes it, with all its runs, for any data set
# of `book/recipes/mbdml-*.yaml`. In a terminal, from the project's folder:
#
# ```bash
# python -m dml.runs run --recipe mbdml-cifar10
# ```

# %% tags=["remove-cell"]
import dataclasses
import inspect

import numpy as np
import pandas as pd
import torch
from IPython.display import Code
from myst_nb import glue
from sklearn.manifold import TSNE
from sklearn.metrics import silhouette_score

from dml import classification, data, nngk, plot, runs

plot.use_style()

# %% tags=["parameters"]
dataset: str = "digits"  # a name of dml.data.NAMES
dataset_options: dict = {}  # for its reader
methods: list = [
    "contrastive",
    "proxy_anchor",
    "soft_triple",
    "sup_con",
    "triplet",
    "mixup",
    "nngk",
    "mbdml1",
    "mbdml2",
    "mbdml3",
]
seeds: int = 10  # runs of each method: labelled images, weights, batches, mixing
label_fraction: float = 0.1  # of each class's training images
sigma: float = 10.0  # of the kernels
neighbours: int = 20  # N; the paper's 200 are more than there are labelled digits
refresh: int = 5  # epochs between two computations of the centres
alpha: float = 1.0  # lambda ~ Beta(alpha, alpha); 0 does not mix
released: bool = False  # compute what the authors' code does
backbone: str = "small"  # or any timm model
weights: str = "none"  # or pretrained, or a path
freeze_norm: bool = False  # batch norm stays as it was given
augment: str = "none"  # a name of dml.data.transforms.AUGMENTATIONS
epochs: int = 30  # passes over the labelled images
batch_size: int = 32  # images of a step
images_per_class: int = None  # in a batch; None shuffles freely
lr: float = 0.001  # Adam's
proxy_lr_factor: float = 1.0  # for proxies, kernel weights, the linear layer
eval_every: int = 5  # epochs between two tests
device: str = "auto"  # the GPU where there is one
workers: int = 0  # processes that decode images
root: str = None  # folder of the data sets; None is the project's datasets/
tag: str = ""  # a word for a variant, part of the records' names

# %%
config = classification.Config.from_namespace(globals())
sets = classification.load(config)
labelled = classification.labelled(config, sets, seed=0)
shape = len(sets.train.classes), len(sets.train), len(labelled), len(sets.query)

# %% tags=["remove-cell"]
for name, value in zip(("classes", "train", "labelled", "test"), shape, strict=True):
    glue(name, value, display=False)
glue("dataset", config.dataset, display=False)
glue("seeds", config.seeds, display=False)

# %% [markdown]
# Shown here: {glue:text}`dataset`, {glue:text}`classes` classes,
# {glue:text}`train` training images of which {glue:text}`labelled` are labelled,
# {glue:text}`test` test images of the same classes. It is not the paper's setting, whose
# network was pretrained; digits are small enough to be trained live on this page.
#
# ## The classifier
#
# Every labelled image is a centre $c_i$, its feature, with a trained weight $w_i$. The
# $N$ nearest centres of $x$ vote, each with a Gaussian kernel:
#
# $$
# p(y \mid x) = \frac{\sum_{i \in N(x),\, y_i = y} e^{w_i} k(f(x), c_i)}
# {\sum_{i \in N(x)} e^{w_i} k(f(x), c_i)}, \qquad
# k(u, v) = e^{-\|u - v\|^2 / 2 \sigma^2}.
# $$ (eq-nngk)
#
# In training an image is not its own neighbour. Centres are as the network put them some
# epochs ago: every `refresh` epochs they move.

# %% tags=["hide-input"]
Code(inspect.getsource(nngk.GaussianKernels.forward), language="python")

# %% [markdown]
# Two things in it are worth a look. The squared length of $f(x)$ cancels in
# {eq}`eq-nngk`, so one product with all centres is all the distance that is needed; and
# everything is a logarithm. Far from all centres every kernel underflows, while their
# ratio does not:

# %%
centres, centre_labels = torch.tensor([[0.0, 0], [0, 1]]), torch.tensor([0, 1])
kernels = nngk.GaussianKernels(centres, centre_labels, sigma=1, neighbours=2)
x = torch.tensor([[0.0, distance] for distance in (1, 10, 100)])
plain = torch.exp(-(torch.cdist(x, centres) ** 2) / 2) + 1e-10  # as it is often written
pd.DataFrame(
    {
        "distance / sigma": x[:, 1],
        "p of the nearer": kernels(x).exp().detach()[:, 1],
        "with 1e-10 in place of logs": (plain / plain.sum(1, keepdim=True))[:, 1],
    }
)

# %% [markdown]
# ## Three ways to mix
#
# A mixed image $\tilde x = \lambda x + (1 - \lambda) x'$ has the targets $y$ and $y'$ in
# the same proportion. The loss has two parts,
#
# $$
# b\, L(p(\cdot \mid x), y) + c\, \big( \lambda L(p'(\cdot \mid \tilde x), y)
# + (1 - \lambda) L(p'(\cdot \mid \tilde x), y') \big),
# $$ (eq-mbdml)
#
# with $L$ the negative logarithm. A method is two weights and a choice of $p'$: the
# kernels, or a linear layer as in the original mixup.

# %%
pd.DataFrame({name: dataclasses.asdict(m) for name, m in nngk.METHODS.items()}).T

# %% [markdown]
# ## Four feature spaces
#
# The paper draws four spaces: the network's own, that of the kernels, and both with
# mixed images. Here they are, computed: the network before training, the network that
# NNGK trained, the first again with mixed images, and the network of MbDML-2 with mixed
# images.

# %%
shown = torch.arange(len(sets.query))[:: max(1, len(sets.query) // 300)]
some = sets.query.take(shown)
states, film = {}, {}
for method in ("nngk", "mbdml2", "mbdml3"):
    for row, state in classification.epochs(config, sets, method, seed=0):
        if method == "mbdml3" and row["epoch"] % max(1, config.epochs // 6) == 0:
            film[row["epoch"]] = state.features(some).cpu().numpy()
    states[method] = state

# %%
rng = np.random.default_rng(0)
one, other = torch.from_numpy(rng.integers(len(some), size=(2, 150)))
lam = torch.from_numpy(rng.beta(1, 1, size=(150, 1, 1, 1)))
mixed = lam * some.images[one] + (1 - lam) * some.images[other]
blends = data.Split(mixed.round().to(torch.uint8), torch.zeros(150), ["mixed"])


def tsne(points, init="pca"):
    """A map of the neighbourhoods."""
    return TSNE(init=init, random_state=0, max_iter=300).fit_transform(points)


_, states["start"] = next(classification.epochs(config, sets, "nngk", seed=0))
clean = {name: state.features(some).cpu().numpy() for name, state in states.items()}
with_mixed = {
    name: np.concatenate([clean[name], states[name].features(blends).cpu().numpy()])
    for name in ("start", "mbdml2")
}
spaces = {
    "(a) CNN": tsne(clean["start"]),
    "(b) NNGK": tsne(clean["nngk"]),
    "(c) CNN and mixup": tsne(with_mixed["start"]),
    "(d) mixup of NNGK": tsne(with_mixed["mbdml2"]),
}

# %% tags=["hide-input"] mystnb={"figure": {"caption": "The four feature spaces of the paper, computed: t-SNE maps of test images, a colour a class, and of mixed images, black. (a) The network before training, (b) trained with kernels, (c) before training, with mixed images, (d) trained by MbDML-2, with mixed images.", "name": "fig-spaces"}, "image": {"alt": "Four scatter plots. Classes run into each other in the two spaces of the untrained network and form groups in the two trained ones; black points of mixed images lie between them."}}
plot.class_maps(spaces, some.labels)

# %% tags=["remove-cell"]
for name, points in clean.items():
    glue(f"silhouette-{name}", silhouette_score(points, some.labels), display=False)

# %% [markdown]
# How well the classes are apart, in the whole space and for images that were not trained
# on, is a number (the silhouette, at most 1): {glue:text}`silhouette-start:.2f` for (a),
# {glue:text}`silhouette-nngk:.2f` for (b), {glue:text}`silhouette-mbdml2:.2f` for (d).
# The authors find that classes are "consistently much better separated by the
# Mixup(NNGK)"; here, compare the last two.
#
# ## Maps of the trained spaces

# %%
maps = {name: tsne(clean[name]) for name in ("start", "nngk", "mbdml2", "mbdml3")}

# %% tags=["hide-input"] mystnb={"figure": {"caption": "t-SNE maps of the same test images in the features of the network before training and after each of three methods.", "name": "fig-tsne"}, "image": {"alt": "Four maps; in the three of trained networks, points of a colour are together in groups."}}
plot.class_maps(maps, some.labels)

# %% [markdown]
# And the way there, under MbDML-3: each frame's map starts from the one before.

# %%
frames, position = {}, "pca"
for epoch, points in film.items():
    frames[f"epoch {epoch}"] = tsne(points, init=position)
    position = frames[f"epoch {epoch}"] * (1e-2 / frames[f"epoch {epoch}"].std())

# %% tags=["hide-input"] mystnb={"figure": {"caption": "The embedding of test images while MbDML-3 trains, one t-SNE map every few epochs. Press play, or move the slider.", "name": "fig-film"}, "image": {"alt": "A scatter plot with a slider over epochs; the classes move apart."}}
plot.film(frames, some.labels, some.classes)

# %% [markdown]
# ## Ten methods
#
# Contrastive, Proxy Anchor, SoftTriple, SupCon and triplet are
# pytorch-metric-learning's {cite:p}`musgrave2020pml` with its defaults. They learn
# features and leave the classifier out, so all are judged by the same kernels, with
# weights 0; mixup alone by its linear layer. All share backbone, batches, learning rate
# and labelled images of a seed. A run that has a record is read, one that has none is
# made now.

# %% tags=["remove-stderr"]
history = classification.table(config, sets)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Training and test accuracy by epoch, means over the runs, of the five methods whose curves the authors show. Training accuracy leaves each image's own centre out.", "name": "fig-accuracy"}, "image": {"alt": "Two panels of five curves by epoch, rising fast and levelling off, training near one hundred per cent, test below it."}}
plot.accuracy_curves(history)

# %%
published = pd.read_csv(runs.ROOT / "results" / "published" / "mbdml.csv")
table = classification.summary(history, published[published["dataset"] == config.dataset])
classification.cells(table)

# %% tags=["remove-cell"]
best = table["mean"].idxmax()
glue("best", best, display=False)
for name in ("mean", "std"):
    glue(f"best-{name}", float(table.loc[best, name]), display=False)
close = [
    m for m in table.index
    if m != best and table.loc[best, "mean"] - table.loc[m, "mean"] < table.loc[[m, best], "std"].max()
]  # fmt: skip
glue("close", ", ".join(close) or "none", display=False)

# %% [markdown]
# Mean and standard deviation of the last epoch's accuracy over all test images, in per
# cent. The highest mean is that of {glue:text}`best`,
# {glue:text}`best-mean:.1f` ± {glue:text}`best-std:.1f`; within one standard deviation of
# it: {glue:text}`close`.
#
# The same for every data set that has runs on record, with the paper's beside where it
# has that data set. Glyphs are harder: many more classes, and fewer labels of each.

# %%
classification.cells(classification.results())

# %% [markdown]
# What the paper reports, from a pretrained ResNet-50:

# %%
paper = published.rename(columns={"accuracy_mean": "mean", "accuracy_std": "std"})
paper = classification.cells(paper.set_index(["method", "dataset"]))["accuracy (%)"]
paper.unstack().reindex(classification.METHODS)

# %% [markdown]
# ## What the released code computes
#
# The code differs from the paper in four places; each can be run.
#
# 1. MbDML-1's mixup has no layer: the first channels of the feature are the logits.
# 2. A mixed image has the neighbours of one parent, found at the last refresh.
#    (`released=True` is both.)
# 3. The README's command for MbDML-2 has `--alpha 1 --alpha 0`: the second counts, so
#    nothing is mixed (`alpha=0`).
# 4. Accuracy divides the last, partial batch of a test by a whole batch.

# %% tags=["remove-stderr"]
variants = {
    "released": dataclasses.replace(
        config, released=True, tag="released", methods=("mbdml1", "mbdml2", "mbdml3")
    ),
    "alpha 0": dataclasses.replace(config, alpha=0.0, tag="alpha0", methods=("mbdml2",)),
}
columns = {"paper": table} | {
    name: classification.summary(classification.table(variant, sets))
    for name, variant in variants.items()
}
shown = {name: classification.cells(rows)["accuracy (%)"] for name, rows in columns.items()}
pd.DataFrame(shown).reindex(["mbdml1", "mbdml2", "mbdml3"]).fillna("")

# %%
n = len(sets.query)
factor = n / (32 * -(-n // 32))  # of the released accuracy

# %% tags=["remove-cell"]
glue("factor", factor, display=False)
difference = {
    name: columns[name]["mean"] - table["mean"].reindex(columns[name].index) for name in variants
}
bench = pd.read_json(runs.ROOT / "results" / "benchmarks" / "nngk.json").set_index("task")
for name, value in {
    "released-1": difference["released"]["mbdml1"],
    "released-2": difference["released"]["mbdml2"],
    "alpha-2": difference["alpha 0"]["mbdml2"],
    "step-times": bench.loc["step", "times faster"],
    "step-memory": bench.loc["step", "released MB"] / bench.loc["step", "dml MB"],
    "search-times": bench.loc["search", "times faster"],
}.items():
    glue(name, float(value), display=False)

# %% [markdown]
# Beside the paper's meaning, the released MbDML-1 moves the mean by
# {glue:text}`released-1:+.1f` points, MbDML-2 by {glue:text}`released-2:+.1f`, and
# MbDML-2 without mixing by {glue:text}`alpha-2:+.1f`. With this many test images the
# released accuracy would be {glue:text}`factor:.4f` of the true one.
#
# The released code also goes through a batch example by example. At the sizes of
# CIFAR-100 (5,000 centres of 2,048 dimensions, a batch of 32), one product for all is
# {glue:text}`step-times:.1f` times as fast, forward and backward, in a
# {glue:text}`step-memory:.0f`th of the memory; finding neighbours, without a full sort, is
# {glue:text}`search-times:.1f` times as fast (`make bench`).
#
# ## What we saw
#
# Kernels at labelled images are a classifier that needs no layer, and exact arithmetic
# keeps it alive far from all of them. MbDML is one loss with two weights and a choice.
# Which choice wins depends on the data set, as in the paper's own table; from random
# weights on this page it is {glue:text}`best`, and the spread over runs says how much
# that means.
#
# ## Exercises
#
# 1. Set `sigma` to 1. Which methods suffer, and why does MbDML-2's loss explode?
# 2. Set `label_fraction` to 0.5. Does the order of the methods stay?
# 3. Run `mbdml-folder` on your own images.
