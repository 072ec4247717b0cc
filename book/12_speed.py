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
# mixing adds to the loss, what it adds to a whole training step in each space, and how
# both grow with the batch. All figures are ratios of computations that took turns in one
# program, because seconds say more about a machine than about a method.

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
for name, value in {
    "feature-least": feature.min(),
    "feature-most": feature.max(),
    "embed-most": embed.max(),
    "input-least": given["time"].min(),
    "input-most": given["time"].max(),
    "ms-most": loss_table.loc[loss_table["loss"] == "multi_similarity", "time / library"].max(),
}.items():
    glue(name, f"{value:.2f}", display=False)

# %% [markdown]
# ## What we saw
#
# Over all losses and batches, a step with embedding mixup took at most
# {glue:text}`embed-most` times the baseline's; with feature mixup,
# {glue:text}`feature-least` to {glue:text}`feature-most` times; with input mixup,
# {glue:text}`input-least` to {glue:text}`input-most` times. Multi-similarity with mixed
# embeddings never took more than {glue:text}`ms-most` times the library's clean loss and
# miner. `make bench` measures all of this again.
#
# ## Exercises
#
# 1. Run `python benchmarks/losses.py --batches 1024`. Which ratio has not settled, and
#    why?
# 2. With all negatives (`hardest=None`), an anchor has many times the mixed candidates.
#    Count them for a batch, and measure what they cost in embedding space.
