# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# (ch-space)=
# # What mixup does to the space can be measured and seen
#
# Recall@K says whether the right neighbour came first. It does not say what the space
# looks like: whether classes are tight, whether the sphere is used, whether the
# training images reach where the test images lie. By the end of this page you will have
# five numbers that do, pictures of the same things, and a comparison of spaces trained
# with and without mixing, over as many seeds as there are records.
#
# > We also introduce a new metric—utilization—to demonstrate that by mixing examples
# > during training, we are exploring areas of the embedding space beyond the training
# > classes, thereby improving representations.
# >
# > — Metrix {cite:p}`venkataramanan2022metrix`, abstract

# %% tags=["remove-cell"]
import inspect

import pandas as pd
import torch
from IPython.display import Code, Markdown
from myst_nb import glue
from tqdm import tqdm

from dml import analysis, data, mixup, plot, runs, train

plot.use_style()

# %% tags=["parameters"]
classes: int = 150  # of glyphs, half of them to train on, in the live experiment
size: int = 16  # pixels
epochs: int = 8  # of its two trainings
loss: str = "multi_similarity"  # of the live experiment
mix: str = "embed"  # what is compared with no mixing there
seed: int = 0  # of all that is random
shown_classes: int = 10  # in the maps
map_method: str = "tsne"  # or umap, where umap-learn is installed
tag: str = "methods"  # of the records in the table

# %% [markdown]
# ## Five numbers
#
# Take unit embeddings of test images $x \in Q$ with their classes, and of the training
# images $X$. Alignment and uniformity {cite:p}`wang2020alignment` ask how close
# positives are and how evenly everything is spread over the sphere:
#
# $$
# \text{alignment} = \mathop{\mathrm{mean}}_{(x, y)\ \text{of a class}} \lVert x - y \rVert^2,
# \qquad
# \text{uniformity} = \log \mathop{\mathrm{mean}}_{x \ne y} e^{-2 \lVert x - y \rVert^2} .
# $$ (eq-alignment)
#
# Utilization is Metrix's: how far a test image is from its nearest training image,
#
# $$
# u(Q, X) = \mathop{\mathrm{mean}}_{q \in Q}\, \min_{x \in X} \lVert q - x \rVert^2 .
# $$ (eq-utilization)
#
# All three are better when lower, but not at any price: one point has perfect alignment
# and the worst uniformity. The spectral decay and the ratio of distances within and
# between classes are of {cite:t}`roth2020revisiting`: the first is 0 where all
# directions are used alike, the second is small where classes are tight and far apart.
#
# No pair need be made for alignment, since the squared distances of a class follow from
# the sum of its members; utilization goes through the distances in blocks and keeps one
# number for each query:

# %% tags=["hide-input"]
Code(
    inspect.getsource(analysis.alignment) + "\n\n" + inspect.getsource(analysis.utilization),
    language="python",
)

# %% [markdown]
# Known cases: four orthogonal classes of identical images are perfectly aligned, and a
# training set that holds the queries is at distance 0.

# %%
perfect = torch.eye(4, 8).repeat_interleave(3, 0)
labels = torch.arange(4).repeat_interleave(3)
known = analysis.space(perfect, labels, train=perfect)
assert abs(known["alignment"]) < 1e-9 and abs(known["utilization"]) < 1e-6
{name: known[name] for name in ("alignment", "uniformity", "utilization")}

# %% [markdown]
# ## Two trainings, from one start
#
# The small network on a part of glyphs, {glue:text}`epochs` epochs of
# {glue:text}`loss`: once without mixing and once with {glue:text}`method`. Equal seeds
# give equal weights and equal batches. After each epoch a few test classes are
# embedded, for the maps below.

# %%
sets = data.load("glyphs", classes=classes, size=size)
some = sets.query.of_classes(range(shown_classes))
device = torch.device("cpu")


def trained(mix):
    """The network after training, and the embeddings of `some` after each epoch."""
    config = train.Config(mix=mix, loss=loss, epochs=epochs, seed=seed, device="cpu")
    parts = train.build(config, sets, device)
    batches = data.loader(
        sets.train, config.batch_size, config.images_per_class, train=True, seed=seed
    )
    frames = [train.embed(parts.network, some, config, device)]
    for epoch in range(epochs):
        batches.set_epoch(epoch)
        list(train.steps(config, parts, batches, device, tqdm(disable=True)))
        parts.schedule.step()
        frames.append(train.embed(parts.network, some, config, device))
    return parts.network, frames


# %% tags=["remove-stderr"]
names = {"none": runs.METHODS["none"], mix: runs.METHODS[mix]}
networks, frames = {}, {}
for way in names:
    networks[way], frames[way] = trained(way)
config = train.Config(seed=seed, device="cpu", loss=loss)
start = train.build(config, sets, device).network
spaces = {"untrained": start} | {names[way]: networks[way] for way in names}

# %%
rows = {}
for name, network in spaces.items():
    measured = train.evaluate_on(network, sets, config, device, space=True)
    rows[name] = {"Recall@1 (%)": 100 * measured["recall_at_1"]}
    rows[name] |= {measure: measured[measure] for measure in analysis.MEASURES}
one_seed = pd.DataFrame(rows).T
one_seed.rename(columns=lambda name: name.replace("_", " ")).style.format("{:.2f}")

# %% [markdown]
# One seed is an anecdote; the table over seeds is further down. The untrained network
# is the lesson here: its alignment and utilization are excellent, since it maps
# everything to nearly the same place, and its uniformity shows it.
#
# ## Positives and negatives
#
# The same, as distributions: the similarities of all pairs of test images, of one class
# and of two.

# %% tags=["remove-cell"]
pairs, labels = {}, sets.query.labels
upper = torch.ones(len(labels), len(labels)).triu(1).bool()  # each pair once
same = labels[:, None] == labels
for key, (name, network) in zip(("start", "none", "mixed"), spaces.items(), strict=True):
    z = train.embed(network, sets.query, config, device)
    s = z @ z.T
    pairs[name] = s[same & upper], s[~same & upper]
    positive, negative = pairs[name]
    share = (negative > positive.median()).double().mean().item()
    glue(f"overlap-{key}", f"{share:.1%}", display=False)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Similarities of pairs of test images, of one class (blue, solid) and of two (orange, dashed): before training, after training without mixing, and with it. One seed.", "name": "fig-similarities"}, "image": {"alt": "Three histograms. Before training both kinds of pairs pile up near similarity one. After training, negatives spread around a low similarity and positives lie to their right."}}
plot.similarity_distributions(pairs)

# %% [markdown]
# Of the negative pairs, this part is more similar than the median positive pair:
# {glue:text}`overlap-start` before training, {glue:text}`overlap-none` after it without
# mixing, {glue:text}`overlap-mixed` with it.
#
# ## Maps
#
# A map shows neighbourhoods, not distances. t-SNE {cite:p}`maaten2008tsne` draws
# {glue:text}`shown` test classes, none of which was trained on; UMAP
# {cite:p}`mcinnes2018umap` does where `umap-learn` is installed (`map_method`). A map
# starts from the one before it, so that a point that moves has moved.

# %%
before, without, mixed = frames["none"][0], frames["none"][-1], frames[mix][-1]
maps = plot.plane(
    {"before training": before, names["none"]: without, names[mix]: mixed}, map_method, seed
)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Test images of classes that were not trained on, at their places in a map of the space: before training, after training without mixing, and with it.", "name": "fig-image-maps"}, "image": {"alt": "Three maps made of small pictures of characters. In the first they are mixed, in the others most pictures of a character lie together."}}
plot.image_map(maps, some.images)

# %% [markdown]
# The same with {glue:text}`method`, epoch by epoch. Press play or move the slider; in
# the rendered page, the image under the pointer is shown beside it.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "The test images' map while the network trains with mixing.", "name": "fig-space-film"}, "image": {"alt": "A scatter plot with a slider over epochs, a colour and a shape a class; classes draw together."}}
kept = sorted({0, 1, epochs // 2, epochs})
steps = plot.plane({f"epoch {e}": frames[mix][e] for e in kept}, map_method, seed)
plot.film(steps, some.labels, some.classes, some.images)

# %% [markdown]
# ## Who is near a query
#
# The queries that the two networks disagree on most: right neighbours are framed blue,
# wrong ones orange.

# %% tags=["remove-cell"]
nearest = {}
for way, network in networks.items():
    z = train.embed(network, sets.query, config, device)
    nearest[way] = (z @ z.T).fill_diagonal_(-1).topk(8)
right = {
    way: sets.query.labels[found.indices] == sets.query.labels[:, None]
    for way, found in nearest.items()
}
better = right[mix].sum(1) - right["none"].sum(1)
asked = torch.cat([better.topk(2).indices, (-better).topk(2).indices])
glue("better", int((better > 0).sum()), display=False)
glue("worse", int((better < 0).sum()), display=False)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Four queries, their neighbours without mixing. The first two are those that mixing helped most, the last two those that it harmed most.", "name": "fig-neighbours-none"}, "image": {"alt": "Four rows: a query character and its eight nearest test images with blue or orange frames and a similarity below each."}}
found = nearest["none"].indices[asked]
plot.neighbours(
    sets.query.images[asked], sets.query.images[found], right["none"][asked],
    nearest["none"].values[asked],
)  # fmt: skip

# %% tags=["hide-input"] mystnb={"figure": {"caption": "The same queries, their neighbours with mixing.", "name": "fig-neighbours-mixed"}, "image": {"alt": "The same four queries with the neighbours that the other network finds."}}
found = nearest[mix].indices[asked]
plot.neighbours(
    sets.query.images[asked], sets.query.images[found], right[mix][asked],
    nearest[mix].values[asked],
)  # fmt: skip

# %% [markdown]
# More of the eight neighbours are right with mixing for {glue:text}`better` queries and
# fewer for {glue:text}`worse`.
#
# ## What lies between two images
#
# Mix two test images of two classes, from one to the other, embed each mixture, and
# look who is near. If the network interpolated as mixing asks, the neighbours would be
# of the first class, then of both, then of the second, and of no third.

# %%
pictures, labels = sets.query.images, sets.query.labels
network = networks[mix].eval()
z = train.embed(network, sets.query, config, device)
lams = [1.0, 0.75, 0.5, 0.25, 0.0]
i, j = (torch.tensor([int((labels == c).nonzero()[0])]) for c in (0, 1))
with torch.inference_mode():
    blends = torch.cat(
        [mixup.interpolate(pictures.float(), i, j, lam).round().byte() for lam in lams]
    )
    similarity = network(blends) @ z.T
    similarity[:, torch.cat([i, j])] = -1  # the parents themselves are not shown
near = similarity.topk(8)
whose = torch.full_like(near.indices, -1)
for which, c in enumerate((0, 1)):
    whose[labels[near.indices] == c] = which

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Two test images mixed in five proportions (left), and the test images nearest to each mixture in the space trained with mixing. Blue frames are of the first parent's class, orange ones of the second's, grey ones of neither.", "name": "fig-between"}, "image": {"alt": "Five rows, from one character through three blends to another; beside each, eight neighbours with frames that go from blue to orange, some grey."}}
plot.mixture_neighbours(blends, lams, pictures[near.indices], whose, near.values)

# %% tags=["remove-cell"]
glue("third", f"{(whose[1:-1] == -1).double().mean().item():.0%}", display=False)
glue("third-ends", f"{(whose[[0, -1]] == -1).double().mean().item():.0%}", display=False)
glue("epochs", epochs, display=False)
glue("loss", loss.replace("_", "-"), display=False)
glue("method", runs.METHODS[mix], display=False)
glue("shown", shown_classes, display=False)

# %% [markdown]
# Of the neighbours of the three true mixtures, {glue:text}`third` are of neither class;
# of the two parents', {glue:text}`third-ends`.
#
# ## Over seeds
#
# The runs of `book/recipes/grid-methods.yaml` record the five numbers after their last
# epoch. Mean ± standard deviation over seeds, on test classes of a part of glyphs:

# %% tags=["hide-input"]
table = runs.load(dataset="glyphs", tag=tag, profile="paper", folds=0)
table = table.dropna(subset="alignment") if "alignment" in table else table.iloc[:0]
shown = ["recall_at_1", *analysis.MEASURES]
if len(table):
    groups = table.groupby(["loss", "mix"])
    mean, std = groups[shown].mean(), groups[shown].std()
    cells = mean.map("{:.3f}".format) + std.map(lambda x: f" ± {x:.3f}" if x == x else "")
    cells.insert(0, "seeds", groups.size())
    order = {way: n for n, way in enumerate(runs.METHODS)}
    cells = cells.sort_index(key=lambda index: index.map(lambda key: order.get(key, key)))
    cells = cells.rename(index=runs.METHODS, level="mix")
    missing = Markdown("")
else:
    cells = pd.DataFrame(columns=["loss", "mix", "seeds", *shown])
    missing = Markdown(
        "No record yet: `make sweep GRID=book/recipes/grid-methods.yaml` makes them."
    )
cells.rename(columns=lambda name: name.replace("_", " "))

# %% tags=["hide-input"]
missing

# %% tags=["remove-cell"]
verdict = "There are no records yet that would say what holds over seeds."
if len(table):
    said = []
    for measure in ("alignment", "uniformity", "utilization"):
        gains = runs.gains(table, measure)
        lower, higher = (gains["high"] < 0).sum(), (gains["low"] > 0).sum()
        said.append(f"{measure} is lower in {lower} and higher in {higher} of {len(gains)}")
    verdict = (
        "Beside the baseline of the same seed, with 95 % confidence intervals that exclude zero, "
        + "; ".join(said)
        + " pairs of a loss and a method."
    )
glue("space-verdict", verdict, display=False)
with_recall = "There are none yet."
if len(table) and table["mix"].nunique() > 2:
    means = table.groupby(["loss", "mix"])[shown].mean()
    ranks = means.groupby("loss").rank()
    rho = ranks[list(analysis.MEASURES)].corrwith(ranks["recall_at_1"])
    with_recall = ", ".join(f"{name.replace('_', ' ')} {value:+.2f}" for name, value in rho.items())
glue("with-recall", with_recall, display=False)

# %% [markdown]
# {glue:text}`space-verdict`
#
# Which of the numbers goes with Recall@1? Correlations of ranks over methods, within
# losses: {glue:text}`with-recall`. A handful of methods on one data set; it describes
# these runs and no law.
#
# ## What we saw
#
# Alignment and utilization alone are fooled by a space that has collapsed, so the
# numbers belong together. Pictures explain and do not prove: maps depend on their
# method and seed, and a query can be found for every claim. {glue:text}`space-verdict`
#
# ## Exercises
#
# 1. Set `mix="input"`. Do the mixtures of {numref}`fig-between` have fewer neighbours
#    of a third class?
# 2. Compute the five numbers of raw pixels. Which of them would you have believed?
# 3. Set `epochs=30`. Does utilization on test classes fall, or does alignment?
