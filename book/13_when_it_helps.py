# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# (ch-when)=
# # At this size, embedding mixup did not pay
#
# Should you mix? By the end of this page you will know on what the answer depended
# here: the size of the images and how hard they are, the number of classes, the length
# of training, the width of the embedding, and pretraining. Each is varied alone, with a
# baseline of its own, so that a difference is the mixing and nothing else.

# %% tags=["remove-cell"]
import pandas as pd
from IPython.display import Markdown
from myst_nb import glue

from dml import plot, runs

plot.use_style()

# %% tags=["parameters"]
dataset: str = "glyphs"  # where one factor at a time is varied
loss: str = "multi_similarity"  # with which
mix: str = "embed"  # what is compared with the baseline
tag: str = "when"  # of these runs
middle: str = "methods"  # tag of the runs in the middle of every factor
wider: str = "methods32"  # tag of the same at larger images
fine_tuned: str = "emoji"  # the data set that starts from ImageNet weights
metric: str = "recall_at_1"  # what is compared

# %% [markdown]
# ## One factor at a time
#
# The middle is the setting of {ref}`ch-methods`: {glue:text}`classes` characters, half of
# them to train on, {glue:text}`size` pixels, {glue:text}`epochs` epochs,
# {glue:text}`embedding_size` dimensions, {glue:text}`images_per_class` images a class in
# a batch, no augmentation. Each seed divides the classes anew. The runs are those of
# `book/recipes/grid-when.yaml`, and of `grid-methods-32.yaml` for larger images.

# %% tags=["hide-input"]
NAMES = {
    "size": ("pixels", "{}"),
    "classes": ("classes", "{}"),
    "epochs": ("epochs", "{}"),
    "distortion": ("distortion of images", "times {}"),
    "augment": ("augmentation", "{}"),
    "long": ("the same, longer", "{}"),
    "dimensions": ("dimensions", "{}"),
    "images": ("images a class", "{}"),
}
where = {"dataset": dataset, "loss": loss, "mix": ["none", mix], "profile": "paper", "folds": 0}
table = runs.load(**where)
larger = table["tag"] == wider
pixels = table.loc[larger, "dataset_options"].map(lambda options: options["size"])
table.loc[larger, "tag"] = f"{tag}.size=" + pixels.astype(str)
table = table[(table["tag"] == middle) | (table["tag"].str.split(".").str[0] == tag)]
gains = pd.concat(
    runs.gains(of, metric).assign(tag=name) for name, of in table.groupby("tag", sort=False)
)
baselines = 100 * table[table["mix"] == "none"].groupby("tag")[metric].mean()
gains["baseline"] = gains["tag"].map(baselines)


def describe(name):
    """(group, label) of a setting, by its tag."""
    if name == middle:
        return "", "the middle"
    factor, _, value = name.removeprefix(f"{tag}.").partition("=")
    group, label = NAMES[factor]
    return group, label.format(value)


order = [middle, *(f"{tag}.{name}" for name in NAMES)]
gains = gains.sort_values(
    "tag", key=lambda tags: tags.str.split("=").str[0].map(order.index), kind="stable"
)
gains["group"], gains["label"] = zip(*map(describe, gains["tag"]), strict=True)
gains = gains.reset_index(drop=True)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "What embedding mixup adds to the baseline of the same seed, by setting: mean difference in Recall@1 on unseen classes and its 95 % confidence interval (Student's t), not corrected for the number of comparisons.", "name": "fig-when"}, "image": {"alt": "A forest plot: a point and an interval for each setting, grouped by the factor that is varied, around a vertical line at no difference."}}
plot.forest(gains)

# %% tags=["hide-input"]
tested = runs.tested(gains)
shown = ["group", "label", "seeds", "baseline", "mean", "low", "high", "detectable", "holm"]
tested[shown].style.format("{:.1f}", subset=["baseline"]).format(
    "{:.2f}", subset=["mean", "low", "high", "detectable"]
).format("{:.3f}", subset=["holm"]).hide(axis="index")

# %% [markdown]
# (`baseline` is its mean Recall@1 in per cent; `detectable` the difference that so many
# seeds find in 80 % of the cases; `holm` the $p$ of a paired test, corrected for the
# number of settings, as in {ref}`ch-methods`.)
#
# {glue:text}`when-verdict`


# %% tags=["remove-cell"]
glue("when-verdict", runs.verdict(tested), display=False)
usual = table[table["tag"] == middle].iloc[0]
for name in ("classes", "size"):
    glue(name, usual["dataset_options"][name], display=False)
for name in ("epochs", "embedding_size", "images_per_class"):
    glue(name, int(usual[name]), display=False)
longer = table[table["tag"] == f"{tag}.long=affine"].iloc[0]
glue("epochs-long", int(longer["epochs"]), display=False)
related = tested[["baseline", "mean"]].corr(method="spearman").iloc[0, 1]
glue("with-baseline", f"{related:+.2f}", display=False)
largest = tested.loc[tested["mean"].abs().idxmax()]
glue("largest", f"{largest['group']} {largest['label']} ({largest['mean']:+.1f})", display=False)
by_name = tested.set_index("tag")
short, long = (by_name.loc[f"{tag}.{name}"] for name in ("augment=affine", "long=affine"))
for name, row in {"augmented": short, "augmented-long": long}.items():
    glue(name, f"{row['mean']:+.1f} [{row['low']:+.1f}, {row['high']:+.1f}]", display=False)
glue("short-baseline", f"{short['baseline']:.1f}", display=False)
glue("long-baseline", f"{long['baseline']:.1f}", display=False)
shrinks = abs(long["mean"]) < abs(short["mean"]) / 2
glue("explains", "holds" if shrinks else "is a part of the answer at most", display=False)

# %% [markdown]
# The largest difference is at: {glue:text}`largest`. Augmentation and mixing both make
# the training task harder, to protect from overfitting; a network that has seen each
# image a few times under both may have learnt too little rather than too much. If that
# is so, longer training should shrink the difference. With augmentation, it is
# {glue:text}`augmented` points after {glue:text}`epochs` epochs, and
# {glue:text}`augmented-long` after {glue:text}`epochs-long`, where the baseline has {glue:text}`long-baseline` % in place
# of {glue:text}`short-baseline` %: the explanation {glue:text}`explains`.
#
# Is it simply that mixing helps where the baseline has room, or where it has learned
# enough? The rank correlation of the difference with the baseline's own Recall@1, over
# settings, is {glue:text}`with-baseline`.
#
# ## Fine-tuning ImageNet weights
#
# The papers start from ImageNet weights, and so do these runs: an EfficientNet-Lite0 is
# fine-tuned on emoji, where a class is an emoji and its images are the vendors'
# drawings of it, at few pixels and on a schedule far shorter than the papers'
# (`book/recipes/emoji.yaml`, `grid-emoji.yaml`). Proxy anchor's settings were chosen on
# validation classes (`grid-emoji-validation.yaml`).

# %% tags=["hide-input"]
emoji = runs.load(dataset=fine_tuned, tag="", profile="paper", folds=0)
Markdown(runs.markdown(runs.summary(emoji)) if len(emoji) else "No runs yet.")

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Fine-tuning on emoji: what Metrix adds to the baseline of the same seed and loss, mean difference in Recall@1 on unseen classes and its 95 % confidence interval.", "name": "fig-emoji"}, "image": {"alt": "A forest plot: a point and an interval for each space of Metrix, in a group for each loss, around a vertical line at no difference."}}
tuned = runs.named(runs.gains(emoji, metric))
plot.forest(tuned)

# %% tags=["hide-input"]
judged = runs.tested(tuned)
shown = ["group", "label", "seeds", "mean", "low", "high", "detectable", "holm"]
judged[shown].style.format("{:.2f}", subset=["mean", "low", "high", "detectable"]).format(
    "{:.3f}", subset=["holm"]
).hide(axis="index")

# %% tags=["remove-cell"]
glue("emoji-verdict", runs.verdict(judged), display=False)

# %% [markdown]
# {glue:text}`emoji-verdict`
#
# ## What we saw
#
# From random weights: {glue:text}`when-verdict`
#
# In fine-tuning: {glue:text}`emoji-verdict`
#
# What follows for practice is a procedure, not a setting. Train the baseline long
# enough that it has stopped improving; hold classes out of the training set and compare
# on them, with several seeds and paired differences; mix embeddings first, because that
# costs nearly nothing ({ref}`ch-speed`); start with a small weight, the safest of the
# variants in {ref}`ch-variants`. If the difference is within the noise of the seeds,
# the method is not what limits you.
#
# ## Exercises
#
# 1. Repeat the long runs under augmentation with `weight=0.1`. How much of the
#    difference is left?
# 2. How many seeds would it take to detect a difference of half a point in the setting
#    with the largest deviation?
