# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# (ch-speed)=
# # Mixing embeddings and features is nearly free
#
# What a step costs is a part of a method. By the end of this page you will know what
# mixing adds to the loss, what it adds to a whole training step in each space, how both
# grow with the batch, and what stands around a step: images before it, search after it,
# several GPUs beside each other. All figures are ratios of computations that took turns
# in one program, because seconds say more about a machine than about a method.

# %% tags=["remove-cell"]
import numpy as np
import pandas as pd
from myst_nb import glue

from dml import plot, runs

plot.use_style()

# %% tags=["parameters"]
folder: str = "results/benchmarks"  # of the project: what `make bench` measured
labels: str = "5 of a class"  # the batches of the first table; or "random of 100"
backbone: str = "small"  # the network of the second

# %% tags=["remove-cell"]
source = runs.ROOT / folder
loss_table = pd.read_csv(source / "losses.csv")
step_table = pd.concat([pd.read_csv(path) for path in sorted(source.glob("steps*.csv"))])
image_table = pd.read_csv(source / "data.csv")
run_table = pd.read_csv(source / "training.csv")
search_table = pd.read_json(source / "evaluate.json")
space_table = pd.read_csv(source / "space.csv")

# %% [markdown]
# ## The loss alone
#
# Clean plus mixed loss, forward and backward, for embeddings of 512 dimensions, beside
# the clean step of the same loss in pytorch-metric-learning (multi-similarity with the
# miner that its authors use). Embedding mixup computes the matrix of similarities once
# for both ({eq}`eq-gram`), so the larger the batch, the less the mixing shows:

# %% tags=["hide-input"]
chosen = loss_table[loss_table["labels"] == labels]
wide = chosen.pivot(
    index="loss", columns="batch", values=["time / library", "time / clean", "memory / clean"]
).reindex(chosen["loss"].unique())
wide.style.format("{:.2f}", na_rep="–")

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Time of a clean and mixed loss, forward and backward, as a ratio to the library's clean step of the same loss, by batch size. Below one, mixing costs less than the library's clean loss.", "name": "fig-loss-cost"}, "image": {"alt": "Lines of a ratio against batch size, one a loss. Multi-similarity with mixing stays below one and falls; contrastive is near one; proxy losses lie above."}}
plot.cost_by_batch(chosen.dropna(subset="time / library"), "time / library")

# %% [markdown]
# Extra memory is of the order of the batch squared, and the peak is where the clean loss
# has it: the last columns of the table are the peak of clean and mixed loss together over
# the clean one's.
#
# ## The whole step
#
# From images to updated weights, a network in between. Features are mixed after the one
# pass through the backbone; each mixed image is another image to send through it, so
# input mixup cannot cost less than one plus the share of mixed images. (Where images are
# mixed, one positive of each anchor is.)

# %% tags=["hide-input"]
whole = step_table[step_table["backbone"] == backbone].copy()
whole["bound"] = np.where(whole["space"] == "input", 1 + whole["mixed images / batch"], np.nan)
wide = whole.pivot(index=["loss", "space"], columns="batch", values=["time", "memory"])
wide.style.format("{:.2f}")

# %% [markdown]
# (ratios to the baseline's step, {glue:text}`step-device`, with the small network on
# images of 32 by 32 pixels: the least favourable case, because the network is so cheap.)
#
# With a network of a size that people use, the mixing of features disappears in the
# noise:

# %% tags=["hide-input"]
large = step_table[step_table["backbone"] != backbone]
large.drop(columns=["loss"]).style.format("{:.2f}", subset=["time", "memory"]).format(
    "{:.1f}", subset=["mixed images / batch"]
).hide(axis="index")

# %% tags=["remove-cell"]
glue("step-device", whole["device"].iloc[0], display=False)
feature = whole[whole["space"] == "feature"]["time"]
embed = whole[whole["space"] == "embed"]["time"]
given = whole[whole["space"] == "input"]
crops = image_table[image_table["images"] == "training crop"].set_index("path")
largest = search_table[search_table["size"] == "sop"].set_index("method")
for name, value in {
    "feature-least": feature.min(),
    "feature-most": feature.max(),
    "embed-most": embed.max(),
    "input-least": given["time"].min(),
    "input-most": given["time"].max(),
    "cache-gain": crops.loc["cache, bytes", "images/s / PIL, floats"],
    "search-faiss": largest.loc["dml, Recall@K", "time / faiss IndexFlatIP"],
    "ms-most": loss_table.loc[loss_table["loss"] == "multi_similarity", "time / library"].max(),
}.items():
    glue(name, f"{value:.2f}", display=False)

# %% [markdown]
# ## A run, beside the network alone
#
# A run's own loop, fed by its loader, does more than its backbone: it pools, embeds,
# compares, mixes, updates and gets images. Images per second of all that, as a share of
# what the same timm model reaches with a bare forward and backward of a batch that lies
# ready; peak memory beside its, where CUDA counts it; and the share of a step that is
# spent waiting for images (`benchmarks/training.py`, which takes a GPU where there is
# one; without, a step waits for all that its one thread does for images; a few hundredths
# either way are noise):

# %% tags=["hide-input"]
run_table.assign(mix=run_table["mix"].map(runs.METHODS)).style.format(
    {name: "{:.2f}" for name in ("images/s / bare", "memory / bare", "waits for images")}
    | {"peak MB": "{:,.0f}"},
    na_rep="–",
).hide(axis="index")

# %% [markdown]
# ## Before the step: images
#
# A network waits for images unless they come faster than it works. The papers' code
# decodes a JPEG for every image of every epoch and computes on floats; `dml.data`
# decodes once into a memory-mapped file of bytes (`cache=256`), crops bytes, and lets
# the model normalise on its own device. Photographs and crops of the sizes that the
# papers' data sets have (`benchmarks/data.py`), on one core:

# %% tags=["hide-input"]
image_table.drop(columns="images/s").style.format(
    {"images/s / PIL, floats": "{:.1f}", "bytes / batch": "{:,.0f}"}
).hide(axis="index")

# %% [markdown]
# A test crop out of the cache is a view of memory; a training crop still has to be
# resized.
#
# ## After the step: search
#
# Recall@K asks how many images are more similar to a query than the first right one,
# not for a sorted list. `dml.evaluate` counts, tile by tile of the matrix of
# similarities, each tile of a set against itself once, and computes again what is within
# rounding of a tie, so that the verdicts are those of brute force. Time as a ratio to
# the bare matrix product in OpenBLAS and to faiss, on one core, with memory beyond the
# embeddings:

# %% tags=["hide-input"]
search_table.drop(columns="seconds").style.format(
    precision=3, na_rep="–", subset=[c for c in search_table if "time" in c or "Recall" in c]
).hide(axis="index")

# %% [markdown]
# The utilization of {ref}`ch-space` is a search as well, for the nearest training
# embedding of every test embedding, and goes block by block at the speed of the
# product:

# %% tags=["hide-input"]
space_table.style.format(
    {"time / product": "{:.2f}", "extra MB": "{:,.0f}", "all similarities MB": "{:,.0f}"}
).hide(axis="index")

# %% [markdown]
# ## Several GPUs, and clusters
#
# With `processes=4` Accelerate starts as many replicas, one a GPU. Only the backbone is
# divided: each replica passes its share of the images, and of the mixed ones, through it
# and gathers everyone's feature maps; the loss compares the whole batch with itself in
# every replica. What is learnt is what one process learns. A grid of runs needs none of
# that: `make sweep ON=slurm GRID=...` sends each run to a node of its own, which is the
# better use of many GPUs as long as a run fits on one.
#
# ## What we saw
#
# Over all losses and batches, a step with embedding mixup took at most
# {glue:text}`embed-most` times the baseline's; with feature mixup,
# {glue:text}`feature-least` to {glue:text}`feature-most` times; with input mixup,
# {glue:text}`input-least` to {glue:text}`input-most` times. Multi-similarity with mixed
# embeddings never took more than {glue:text}`ms-most` times the library's clean loss and
# miner. Out of the cache, training crops came {glue:text}`cache-gain` times as fast as by
# PIL and floats. Searching Stanford Online Products' size took {glue:text}`search-faiss`
# times faiss's time. `make bench` measures all of this again.
#
# ## Exercises
#
# 1. Run `python benchmarks/losses.py --batches 1024`. Which ratio has not settled, and
#    why?
# 2. With all negatives (`hardest=None`), an anchor has many times the mixed candidates.
#    Count them for a batch, and measure what they cost in embedding space.
