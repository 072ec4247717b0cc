"""Runs and their records: the only file that knows the folder results/ (book/07_results,
book/99_provenance).

A run is one notebook, book/06_training, executed by papermill with a recipe of parameters. It
leaves, in results/runs/<id>/, `record.json` and the executed notebook; while it runs, a checkpoint
that git ignores.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import yaml
from scipy import stats

from dml import train

ROOT = Path(__file__).resolve().parents[1]
BOOK = ROOT / "book"
RECIPES = BOOK / "recipes"
TRAINING = BOOK / "06_training.ipynb"
PACKAGES = ("torch", "torchvision", "timm", "pytorch-metric-learning", "numpy", "scikit-learn")
START_TIMEOUT = 300  # seconds for a kernel to answer, on a machine that is new and busy
KEYS = {"id", "config", "metrics", "history", "seconds", "device", "versions", "commit"}


def results() -> Path:
    """The results folder: results/ of the project, or the environment's DML_RESULTS (as the tests
    set it)."""
    return Path(os.environ.get("DML_RESULTS", ROOT / "results"))


def folder(run_id: str) -> Path:
    """Where a run leaves everything."""
    return results() / "runs" / run_id


def checkpoint(run_id: str) -> Path:
    """The state that a stopped run continues from."""
    return folder(run_id) / "checkpoint"


def drop_checkpoints(run_id: str) -> None:
    """Remove the state of a stopped run, and what a kill left half-written of it."""
    for path in folder(run_id).glob("checkpoint*/"):  # folders
        shutil.rmtree(path)


# -- Records --


def write(config: train.Config, outcome: dict) -> dict:
    """Write the record of a finished run, whole or not at all, and drop its checkpoint.

    Args:
        config: the run's configuration.
        outcome: what `train.fit` returned of it.
    """
    path = folder(config.id) / "record.json"
    write_json(
        path, {"id": config.id, "config": dataclasses.asdict(config), **outcome, **provenance()}
    )
    drop_checkpoints(config.id)
    return read(path)


def write_json(path: Path, record: dict) -> None:
    """Write a record, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("w") as file:
        json.dump(record, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def provenance() -> dict:
    """What made a record: `versions` of packages and Python, and the `commit`."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"versions": versions | {"python": platform.python_version()}, "commit": _commit()}


def read(path: Path) -> dict:
    """One record. A setting that came after it has its default, which changes nothing.

    Raises:
        ValueError: a file that is not a whole record, by name.
    """
    try:
        record = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(
            f"{path} is not a whole record ({error}): remove it and run again"
        ) from None
    missing = KEYS - record.keys() if isinstance(record, dict) else KEYS
    if missing:
        raise ValueError(f"{path} is not a whole record: it lacks {', '.join(sorted(missing))}")
    record["config"] = json.loads(json.dumps(dataclasses.asdict(train.Config()))) | record["config"]
    return record


def finished(config: train.Config) -> dict | None:
    """The record of this very run, or None where it has not been made.

    Raises:
        ValueError: a record of this name made with other settings, which it names.
    """
    path = folder(config.id) / "record.json"
    if not path.exists():
        return None
    record = read(path)
    ours = json.loads(json.dumps(dataclasses.asdict(config)))
    where = ("device", "processes", "workers", "root")  # where a run is made, not what it is
    other = {key: (record["config"][key], ours[key]) for key in ours if key not in where}
    other = {key: pair for key, pair in other.items() if pair[0] != pair[1]}
    if other:
        changes = ", ".join(f"{key} {old!r} -> {new!r}" for key, (old, new) in other.items())
        raise ValueError(
            f"{config.id} was run with other settings ({changes}): give this one a tag"
        )
    return record


def load(**where) -> pd.DataFrame:
    """All records as a table, a row a run: id, every setting, the last epoch's metrics and the best
    epoch's ("best_...").

    Args:
        where: settings to select by, a value or a list of values: `load(dataset="glyphs",
            mix=["none", "embed"])`.
    """
    rows = []
    for path in sorted((results() / "runs").glob("*/record.json")):
        record = read(path)
        metrics = record["metrics"]
        rows.append(
            {"id": record["id"], **record["config"], "device": record["device"]}
            | metrics["last"]
            | {f"best_{key}": value for key, value in metrics["best"].items()}
            | {f"{key}_seconds": value for key, value in record["seconds"].items()}
            | {key: record[key] for key in ("images_per_second", "peak_memory_mb", "commit")}
        )
    table = pd.DataFrame(rows, columns=None if rows else _columns())
    for key, value in where.items():
        if key not in table:
            raise ValueError(f"no such setting: {key}. Valid are: {', '.join(table.columns)}")
        table = table[table[key].isin(value if isinstance(value, list) else [value])]
    return table.reset_index(drop=True)


def history(table: pd.DataFrame) -> pd.DataFrame:
    """The learning curves of the runs of `load`, a row an epoch of a run, with the run's settings
    beside it; `loss` is the name of the loss, `training_loss` its value."""
    rows = []
    for run in table.to_dict("records"):
        record = read(folder(run["id"]) / "record.json")
        settings = {
            key: run[key] for key in ("id", "dataset", "loss", "mix", "seed", "tag", "profile")
        }
        rows += [row | {"training_loss": row["loss"]} | settings for row in record["history"]]
    return pd.DataFrame(rows)


# -- Tables --

METHODS = {
    "none": "baseline",
    "input": "Metrix, input",
    "feature": "Metrix, feature",
    "embed": "Metrix, embedding",
    "imix": "i-Mix",
    "mochi": "MoCHi",
    "embedding_expansion": "Embedding Expansion",
    "proxy_synthesis": "Proxy Synthesis",
    "input_ce": "mixup, cross-entropy",
    "idml": "IDML",
}


def summary(
    table: pd.DataFrame,
    metrics=("recall_at_1", "mean_average_precision_at_r"),
    by=("dataset", "loss", "mix"),
) -> pd.DataFrame:
    """Mean and standard deviation over seeds of the last epoch's metrics, in per cent.

    Args:
        table: runs, from `load`.
        metrics: names of metrics in [0, 1].
        by: settings that tell the rows apart; the seed is averaged over.

    Returns:
        A row a group, in order, with `runs` and, for each metric, `<metric>` and `<metric>_std`
        (NaN of one run).
    """
    groups = table.groupby(list(by), sort=False)
    columns = {"runs": groups.size()}
    for metric in metrics:
        columns[metric] = 100 * groups[metric].mean()
        columns[f"{metric}_std"] = 100 * groups[metric].std()
    return _ordered(pd.DataFrame(columns).reset_index(), by)


def _ordered(rows: pd.DataFrame, by) -> pd.DataFrame:
    """Rows by these settings, mixes in the order of `METHODS`."""
    order = list(METHODS).index
    rows = rows.sort_values(
        list(by), key=lambda column: column.map(order) if column.name == "mix" else column
    )
    return rows.reset_index(drop=True)


def gains(
    table: pd.DataFrame, metric: str = "recall_at_1", by=("dataset", "loss", "mix")
) -> pd.DataFrame:
    """What mixing adds to the baseline of the same seed, in points of per cent.

    Runs of one seed start from equal weights and see equal batches, so differences are paired.

    Args:
        table: runs, from `load`, with one baseline (mix "none") for each data set, loss and seed.
        metric: name of a metric in [0, 1].
        by: settings that tell the methods apart.

    Returns:
        A row a method that has seeds in common with the baseline: `by`, then `seeds`, the `mean`
        and `std` of the differences, and `low` and `high`, the ends of the mean's 95 % confidence
        interval (Student's t; NaN of one seed).

    Raises:
        ValueError: two baselines for one data set, loss and seed.
    """
    keys = ["dataset", "loss", "seed"]
    twice = table[table["mix"] == "none"].duplicated(keys)
    if twice.any():
        raise ValueError(f"two baselines: {table['id'][twice.index[twice]].iloc[0]} is the second")
    baseline = table[table["mix"] == "none"][[*keys, metric]]
    baseline = baseline.rename(columns={metric: "baseline"})
    mixed = table[table["mix"] != "none"].merge(baseline, on=keys)
    mixed["difference"] = 100 * (mixed[metric] - mixed["baseline"])
    groups = mixed.groupby(list(by), sort=False)["difference"]
    rows = groups.agg(seeds="size", mean="mean", std="std").reset_index()
    half = stats.t.ppf(0.975, rows["seeds"] - 1) * rows["std"] / rows["seeds"] ** 0.5
    return rows.assign(low=rows["mean"] - half, high=rows["mean"] + half)


def tested(rows: pd.DataFrame) -> pd.DataFrame:
    """Those `gains` that have several seeds, with what makes many comparisons honest.

    Returns:
        The rows with three more columns: `p` of the paired t-test; `holm`, p corrected for the
        number of these rows by Holm's step-down method (1979), so that all of them together find
        something by chance in at most 5 % of the cases where 0.05 is the limit; `detectable`, the
        true difference that as many seeds with this deviation find in about 80 % of the cases.
    """
    rows = rows[rows["seeds"] > 1].copy()
    freedom = rows["seeds"] - 1
    error = rows["std"] / rows["seeds"] ** 0.5
    p = pd.Series(2 * stats.t.sf((rows["mean"] / error).abs(), freedom), rows.index)
    ordered = p.sort_values()
    rows["p"] = p
    rows["holm"] = (ordered * (len(p) + 1 - ordered.rank(method="first"))).cummax().clip(upper=1)
    rows["detectable"] = (stats.t.ppf(0.975, freedom) + stats.t.ppf(0.8, freedom)) * error
    return rows


def named(rows: pd.DataFrame) -> pd.DataFrame:
    """`gains` with two more columns, `group` (the loss) and `label` (the method), in their order:
    what `dml.plot.forest` and `verdict` show."""
    rows = _ordered(rows, ("loss", "mix"))
    return rows.assign(group=rows["loss"].str.replace("_", " "), label=rows["mix"].map(METHODS))


def verdict(rows: pd.DataFrame) -> str:
    """What comparisons say together, as a sentence or three that are true of any outcome.

    Args:
        rows: from `tested`, with `group` and `label`, from `named` or a chapter's own.
    """
    if not len(rows):
        return "There are no such runs yet."
    said = "; ".join(
        f"{row['group']} {row['label']} ({row['mean']:+.1f})".strip()
        for _, row in rows[rows["holm"] < 0.05].iterrows()
    )
    positive, negative = (rows["mean"] > 0).sum(), (rows["mean"] < 0).sum()
    above, below = (rows["low"] > 0).sum(), (rows["high"] < 0).sum()
    return (
        f"Of {len(rows)} comparisons, the mean difference is positive in {positive} and negative "
        f"in {negative}; {above} intervals lie wholly above zero and {below} wholly below. After "
        f"Holm's correction these differ from the baseline: {said or 'none'}. A true difference "
        f"of {rows['detectable'].median():.1f} points could have been seen (median)."
    )


def markdown(rows: pd.DataFrame) -> str:
    """`summary` as a table of Markdown: mean ± standard deviation over seeds, in per cent."""

    def cell(row, metric):
        spread = row[f"{metric}_std"]
        return f"{row[metric]:.1f}" + (f" ± {spread:.1f}" if spread == spread else "")

    recall, precision = "recall_at_1", "mean_average_precision_at_r"

    lines = ["| data set | loss | method | Recall@1 | MAP@R | seeds |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {row['dataset']} | {row['loss'].replace('_', ' ')} | {METHODS[row['mix']]} "
        f"| {cell(row, recall)} | {cell(row, precision)} | {row['runs']} |"
        for _, row in rows.iterrows()
    ]
    return "\n".join(lines)


def headline() -> pd.DataFrame:
    """The `summary` of the full-size runs without a tag: what README and the results chapter
    show."""
    return summary(load(profile="paper", tag="", folds=0))


def _columns() -> list[str]:
    return [
        "id",
        *(f.name for f in dataclasses.fields(train.Config)),
        "recall_at_1",
        "mean_average_precision_at_r",
        "best_recall_at_1",
    ]


def _commit() -> str | None:
    """The commit that made a run, with "+" where the working tree differs from it; None outside of
    a clone."""
    try:
        git = ["git", "-C", str(ROOT)]
        head = subprocess.run(
            [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True
        )
        state = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no", "--", "dml", "book"],
            capture_output=True,
            text=True,
        )
    except OSError:
        return None
    if head.returncode:
        return None
    return head.stdout.strip() + ("+" if state.stdout.strip() else "")


# -- Executing the training notebook


def recipe_names(notebook: str = TRAINING.stem) -> list[str]:
    """The recipes of a notebook: of the training notebook, or of the one that they name. The grids
    of `dml.sweep` are none."""
    names = sorted(path.stem for path in RECIPES.glob("*.yaml") if "grid-" not in path.stem)
    return [name for name in names if recipe(name).get("notebook", TRAINING.stem) == notebook]


def recipe(name: str) -> dict:
    """The parameters of book/recipes/<name>.yaml.

    Raises:
        ValueError: no such recipe, with those there are.
    """
    path = RECIPES / f"{name}.yaml"
    if not path.exists():
        names = [path.stem for path in sorted(RECIPES.glob("*.yaml")) if "grid-" not in path.stem]
        raise ValueError(f"no recipe {name!r}. There are: {', '.join(names)}")
    return yaml.safe_load(path.read_text()) or {}


def configure(recipe_name: str, overrides: dict) -> train.Config:
    """A recipe with some of its parameters replaced, checked before any work."""
    return train.Config.from_namespace(recipe(recipe_name) | overrides)


def execute(recipe_name: str, overrides: dict, force: bool = False) -> dict:
    """Make a run unless it is finished: papermill executes the training notebook; returns its
    record.

    Args:
        recipe_name: a file of book/recipes, without the ending.
        overrides: parameters that replace the recipe's.
        force: make it again even if it is finished, from the start.
    """
    import papermill  # a second to import, which `make book` with nothing to run need not spend

    config = configure(recipe_name, overrides)
    if force:
        (folder(config.id) / "record.json").unlink(missing_ok=True)
        drop_checkpoints(config.id)
    if finished(config) is None:
        folder(config.id).mkdir(parents=True, exist_ok=True)
        papermill.execute_notebook(
            str(TRAINING.relative_to(ROOT)),
            str(_relative(folder(config.id) / "training.ipynb")),
            recipe(recipe_name) | overrides,
            cwd=str(BOOK),
            kernel_name="python3",
            progress_bar=False,
            request_save_on_cell_execute=False,
            start_timeout=START_TIMEOUT,
        )
    record = finished(config)
    if record is None:
        raise RuntimeError(f"{config.id}: the training notebook ended without a record")
    return record


def execute_chapter(recipe_name: str, overrides: dict) -> Path:
    """Execute the chapter that a recipe names under `notebook`, with the recipe's parameters; it
    makes the runs that it shows where they are missing. Returns the executed notebook."""
    import papermill

    parameters = recipe(recipe_name) | overrides
    notebook = BOOK / f"{parameters.pop('notebook')}.ipynb"
    path = results() / "chapters" / f"{recipe_name}.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    papermill.execute_notebook(
        str(notebook.relative_to(ROOT)),
        str(_relative(path)),
        parameters,
        cwd=str(BOOK),
        kernel_name="python3",
        progress_bar=False,
        request_save_on_cell_execute=False,
        start_timeout=START_TIMEOUT,
    )
    return path


def _relative(path: Path) -> Path:
    """The path from the current folder, so that no executed notebook names a machine's folders."""
    return Path(os.path.relpath(path))


def main(arguments: list[str] | None = None) -> None:
    """The command line behind `make run`."""
    parser = argparse.ArgumentParser(prog="python -m dml.runs", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("run", help="make one run, unless it is finished")
    run.add_argument("--recipe", default="glyphs")
    run.add_argument(
        "--set", nargs="*", default=[], metavar="NAME=VALUE", help="parameters, values in YAML"
    )
    run.add_argument("--force", action="store_true", help="make it again")
    given = parser.parse_args(arguments)
    os.chdir(ROOT)
    pairs = [text.partition("=") for text in given.set]
    wrong = [name for name, equals, _ in pairs if not equals]
    if wrong:
        parser.error(f"--set needs NAME=VALUE, not {', '.join(wrong)}")
    overrides = {name: yaml.safe_load(value) for name, _, value in pairs}
    try:
        if "notebook" in recipe(given.recipe):
            print(_relative(execute_chapter(given.recipe, overrides)))
            return
        record = execute(given.recipe, overrides, given.force)
    except ValueError as error:  # bad input deserves its message, not a traceback
        parser.exit(2, f"{error}\n")
    last = record["metrics"]["last"]
    print(f"{record['id']}: Recall@1 {last['recall_at_1']:.1%} after {last['epoch']} epochs")


if __name__ == "__main__":
    main()
