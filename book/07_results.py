# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# (ch-results)=
# # What came out, beside what was published
#
# Every number on this page is read from a record of a run or from the papers' tables in
# `results/published`. There are three kinds, never mixed: what the Metrix paper reports
# with a pretrained ResNet-50, what this book has measured on glyphs at full size, from
# random weights, and what *your* machine made when it built this page. If a cell is
# empty, nobody ran it here; the page says which command would fill it.

# %% tags=["remove-cell"]
import pandas as pd
from IPython.display import Markdown
from myst_nb import glue

from dml import plot, runs

plot.use_style()

# %% tags=["parameters"]
dataset: str = "glyphs"  # of the runs shown

# %% [markdown]
# ## On this machine
#
# `make book` has just made these runs, or found that it had made them before: a part of
# glyphs, a short schedule. They show that everything works here and how long it takes;
# they are too small to compare methods.

# %%
smoke = runs.load(dataset=dataset, profile="smoke", tag="", folds=0)
own = runs.summary(smoke) if len(smoke) else None

# %% tags=["hide-input"]
if own is None:
    shown = "There are none yet: `make book` makes them."
else:
    rate = smoke.groupby("mix")["images_per_second"].median()
    shown = (
        runs.markdown(own)
        + "\n\n"
        + "; ".join(f"{runs.METHODS[mix]}: {rate[mix]:,.0f} images a second" for mix in own["mix"])
        + f", on {smoke['device'].iloc[-1]}, smoke size."
    )
Markdown(shown)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Smoke-size runs made on this machine: Recall@1 on unseen classes by epoch, the mean over seeds and their range.", "name": "fig-smoke-curves"}, "image": {"alt": "Learning curves of the baseline and of Metrix, one line a method with a band for its seeds, rising over the epochs."}}
plot.learning_curves(runs.history(smoke), runs.METHODS)

# %% [markdown]
# ## Glyphs at full size
#
# All classes, trained from random weights with the recipe `book/recipes/glyphs.yaml`;
# equal seeds start from equal weights and see equal batches. Proxy anchor's settings were
# chosen on a fold of the training classes (`grid-glyphs-validation.yaml`); mixing has the
# paper's weight throughout. Mean and standard deviation over seeds, of the last epoch, in
# per cent:

# %% tags=["hide-input"]
full = runs.load(dataset=dataset, profile="paper", tag="", folds=0)
Markdown(
    runs.markdown(runs.summary(full))
    if len(full)
    else f"No record yet. `make run DATASET={dataset} MIX=none` makes one."
)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Glyphs at full size: Recall@1 on unseen classes by epoch, the mean over seeds and their range.", "name": "fig-curves"}, "image": {"alt": "Learning curves of the baseline and of Metrix on all of glyphs, a panel a loss, one line a method with a band for its seeds."}}
plot.learning_curves(runs.history(full), runs.METHODS)

# %% [markdown]
# Runs of one seed differ in the mixing alone, so what mixing adds is best read from
# differences within seeds: their mean, standard deviation, and the 95 % confidence interval
# of the mean, in points.

# %% tags=["hide-input"]
gains = runs.named(runs.gains(full))
shown = gains[["group", "label", "seeds", "mean", "std", "low", "high"]]
shown.style.format("{:+.2f}", na_rep="one seed", subset=["mean", "low", "high"]).format(
    "{:.2f}", na_rep="one seed", subset=["std"]
).hide(axis="index") if len(gains) else Markdown("No pairs of runs yet.")

# %% tags=["remove-cell"]
glue("verdict", runs.verdict(runs.tested(gains)), display=False)

# %% [markdown]
# {glue:text}`verdict` This is a small network, trained from random weights on drawings; it
# says what happened here and nothing about the papers' setting.
#
# ## The papers' tables
#
# Metrix with ResNet-50 pretrained on ImageNet and 512 dimensions, as its authors'
# repository gives it: Recall@1 in per cent, the best epoch on the test set. Beside each
# number, what a run of this project gave for the same cell: the last epoch, with the
# deviation of its seeds.

# %% tags=["remove-cell"]
published = pd.read_csv(runs.ROOT / "results" / "published" / "metrix.csv")
paper = published[published["metric"] == "R@1"].rename(columns={"percent": "paper"})
paper["mix"] = paper["mode"].replace("baseline", "none")
keys = ["dataset", "loss", "mix"]
ours = runs.summary(runs.load(profile="paper", tag="", folds=0))
both = paper.merge(ours, on=keys, how="left")
both["here"] = both["recall_at_1"].map("{:.1f}".format).replace("nan", "")
spread = both["recall_at_1_std"].map(" ± {:.1f}".format).replace(" ± nan", "")
both["here"] += spread
empty = both[both["here"] == ""].groupby("dataset", sort=False).size()
commands = "\n".join(
    f"- `make sweep GRID=book/recipes/grid-metrix-{name}.yaml` fills {cells} empty cells of {name}"
    for name, cells in empty.items()
)

# %% tags=["hide-input"]
both["method"] = both["mix"].map(runs.METHODS)
both.set_index(["loss", "method", "dataset"])[["paper", "here"]].unstack().swaplevel(
    axis=1
).reindex(
    columns=pd.MultiIndex.from_product([both["dataset"].unique(), ["paper", "here"]]),
).reindex(index=both.set_index(["loss", "method"]).index.unique()).style.format(
    "{:.1f}", subset=pd.IndexSlice[:, pd.IndexSlice[:, "paper"]]
)

# %% tags=["hide-input"]
Markdown(
    commands
    + "\n\nThe data sets and the pretrained weights have to be fetched from their own sites"
    " first; a run that misses them stops and says from where."
    if commands
    else "Every cell has its run."
)

# %% [markdown]
# ## What we saw
#
# A run leaves a record, and a page of results is a view of records. On glyphs the
# methods can be compared seed by seed; {glue:text}`verdict`
#
# ## Exercises
#
# 1. `make run LOSS=contrastive MIX=none`, then `MIX=feature`, then `make book`. Where do
#    the runs appear?
# 2. Train one method with five seeds. How large must a difference be before you believe
#    it?
