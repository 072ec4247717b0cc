# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# (ch-limits)=
# # What this book has not shown
#
# A reproduction is worth what it admits. By the end of this page you will know which of
# the papers' numbers have a run of this project beside them, which have none and why, and
# how far what was found on small data may be carried.

# %% tags=["remove-cell"]
import pandas as pd
from myst_nb import glue

from dml import classification, plot, runs

plot.use_style()

# %% tags=["parameters"]
paper_size: str = "paper"  # the profile of the runs that count

# %% [markdown]
# ## Published cells without a run
#
# Each row is a data set of a paper's main table; `run here` counts the cells (a loss or
# method, and a space where there is one) that a record of this project fills.

# %%
published = runs.ROOT / "results" / "published"
metrix = pd.read_csv(published / "metrix.csv").query("metric == 'R@1'")
proxygml = pd.read_csv(published / "proxygml.csv").query("metric == 'R@1'")
mbdml = pd.read_csv(published / "mbdml.csv")
ours = runs.load(profile=paper_size, folds=0)
cells = set(zip(ours["dataset"], ours["loss"], ours["mix"], strict=True))
classified = set(classification.results().index)

rows = []
for row in metrix.itertuples():
    mix = "none" if row.mode == "baseline" else row.mode
    rows.append(("Metrix", row.dataset, (row.dataset, row.loss, mix) in cells))
for row in proxygml.itertuples():
    rows.append(("ProxyGML", row.dataset, (row.dataset, "proxygml", "none") in cells))
for row in mbdml.itertuples():
    rows.append(("MbDML", row.dataset, (row.dataset, row.method) in classified))
table = pd.DataFrame(rows, columns=["paper", "data set", "run here"])
counts = table.groupby(["paper", "data set"], sort=False)["run here"].agg(["size", "sum"])
counts.set_axis(["published cells", "run here"], axis=1)

# %% tags=["remove-cell"]
glue("cells", len(table), display=False)
glue("filled", int(table["run here"].sum()), display=False)
own = ours["dataset"].value_counts()
glue("own-runs", int(own.sum()), display=False)
glue("own-sets", ", ".join(own.index), display=False)
glue("devices", "; ".join(sorted(ours["device"].unique())), display=False)

# %% [markdown]
# {glue:text}`filled` of {glue:text}`cells` cells are filled. The others need data that is
# not ours to pass on, ImageNet weights of a ResNet-50 or BN-Inception, and days with a
# GPU. Their
# recipes, their readers and the whole way to a record are tested on small trees in the
# official layouts; that shows that a run would be made, not what it would find.
#
# ## What the small runs can and cannot say
#
# {glue:text}`own-runs` runs of this project stand behind its pages, on
# {glue:text}`own-sets`, made on {glue:text}`devices`. They differ from the papers' in
# everything that could matter to mixing: a small network in place of a ResNet-50,
# drawings in place of photographs, minutes in place of days, and random weights in
# place of ImageNet's everywhere but on emoji. Equal seeds see equal batches, so the
# differences between methods are measured well; what they would be elsewhere is not
# measured at all.
#
# - **What mixup did here is not what it does there.** Where a network is still learning
#   at its last step, everything that makes the task harder may slow it;
#   {ref}`ch-when` tries how far that goes, and does not find the whole answer in it.
# - **Selection.** The papers report the best epoch, chosen on the test set. This book
#   reports the last, and keeps the best under its own name.
# - **One source of classes.** Glyphs share strokes as birds do not share feathers. Seeds
#   vary weights, batches and mixing, not which classes are held out, unless a page says
#   so.
# - **Settings.** Every method runs on a schedule that is none of its paper's. Where
#   methods are compared ({ref}`ch-methods`) their settings were chosen among two or
#   three, on validation classes; on emoji and on glyphs at full size Metrix has its
#   paper's weight. A wider search would help some of them, the baseline perhaps among
#   them.
#
# ## What the papers leave open
#
# The layer at which features are mixed, the form of the contrastive loss, how many
# positives of an anchor take part: text and released code say different things, and
# {ref}`ch-variants` and {ref}`ch-interpolating` say which this book took. A number that
# cannot be reproduced for want of such a detail is not wrong; it is unfinished.
#
# ## Exercises
#
# 1. Fill one cell: `make sweep GRID=book/recipes/grid-metrix-cub.yaml` after fetching
#    CUB. Build the book again and look at the table above.
# 2. Which single missing run would change your mind most, and about what?
