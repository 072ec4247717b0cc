# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   mystnb:
#     execution_mode: force
# ---

# %% [markdown]
# (ch-provenance)=
# # Every number here can be traced and made again
#
# This page says on which machine, with which packages and from which state of the project
# the book before you was rendered, how long each run and each chapter took, and which
# command makes each thing again. Every build computes it anew, also where the other
# chapters are taken from the last build because nothing they depend on has changed.

# %%
import os
import platform
from importlib import metadata

import pandas as pd
import torch
from packaging.requirements import Requirement

from dml import runs

# %% [markdown]
# ## The machine and the commit
#
# A `+` after the commit says that files of the module or the book differed from it.

# %% tags=["hide-input"]
gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
here = {
    "system": f"{platform.system()} {platform.machine()}",
    "processors": os.cpu_count(),
    "threads of torch": torch.get_num_threads(),
    "GPU": gpu,
    "Python": platform.python_version(),
    "commit": runs._commit() or "not in a clone",
}
pd.DataFrame(here.items(), columns=["what", "here"]).style.hide(axis="index")

# %% [markdown]
# ## The packages
#
# `pyproject.toml` names what the project needs, `requirements.txt` pins it with everything
# that it needs in turn. The table lists the first and compares them with the second.

# %%
lines = (runs.ROOT / "requirements.txt").read_text().splitlines()
pins = map(Requirement, lines)
pinned = {p.name: str(p.specifier) for p in pins if not p.marker or p.marker.evaluate()}
rows = []
for need in map(Requirement, metadata.requires("dml-mixup-book")):
    if not need.marker or need.marker.evaluate({"extra": "book"}):
        pin = pinned[need.name].removeprefix("==")
        rows.append((need.name, metadata.version(need.name), pin))
packages = pd.DataFrame(rows, columns=["package", "installed", "pinned"])

# %% tags=["hide-input"]
packages.style.hide(axis="index").apply(
    lambda row: ["font-weight: bold" if row.installed != row.pinned else ""] * len(row),
    axis=1,
)

# %% [markdown]
# A row in bold is a package whose version is not the pinned one: expect other last digits.

# %% [markdown]
# ## The runs
#
# Each row is a record in `results/runs/`, with the time that this run took where it was
# made. Times of different machines, and of one machine on a busy day, do not compare.

# %% tags=["hide-input"]
times = ["train_seconds", "evaluate_seconds", "images_per_second"]
made = runs.load()
made = made.reindex(columns=["id", "epochs", *times, "device", "commit"])
made.columns = [name.replace("_", " ") for name in made.columns]
made.style.hide(axis="index").format(precision=0)

# %% [markdown]
# ## The chapters
#
# The time to execute each chapter, when it was last executed. A chapter is executed again when
# its code, the module, a recipe, a result or a pinned version has changed.
#
# ```{nb-exec-table}
# ```
#
# ## How to make each thing again
#
# | what | from what | command |
# |---|---|---|
# | the environment, `.venv/` | `pyproject.toml`, `requirements.txt` | any verb, on first use |
# | the pins, `requirements.txt` | `pyproject.toml` | `make lock` |
# | a run, `results/runs/<id>/` | `book/06_training` and a recipe of `book/recipes/` | `make run` |
# | the generated tables | the records in `results/runs/` | `make results` |
# | the measured costs | `benchmarks/` | `make bench` |
# | the notebooks, `book/*.ipynb` | the scripts `book/*.py` | `make sync` |
# | these pages, `_build/html/` | the notebooks, the module and the records | `make book` |
#
# A run is made once: its record says what it was run with, and the same command finds it
# finished. `results/published/` holds what the papers printed, typed from them and never computed.
#
# ## What we saw
#
# The tables above were computed from the state of this machine and from the records, not
# written by anyone; a chapter cannot show a number that none of these commands makes.
#
# ## Exercises
#
# 1. Change a metric in one of the records by hand and render the book again. Which
#    pages change, and what would have to be true of a repository for you to notice?
# 2. Make the same run on the CPU twice with one seed. Do the two records agree to the last
#    digit? And with another number of threads?
