"""A grid of runs, made where they are missing: on this machine or on a cluster (book/12_speed).

A grid is a file book/recipes/grid-*.yaml. It names a recipe and, under `runs`, what each group of
runs changes in it; a list stands for one run for each of its values, and settings beside `runs` go
into every group:

    recipe: glyphs
    seed: [0, 1, 2]
    runs:
      - {mix: none}
      - {mix: [embed, feature], weight: [0.2, 0.4], tag: "w={weight}"}

A text may name other settings of its run in braces; within a dict of options it stands for a value:
`dataset_options: {seed: "{seed}"}` draws the classes anew for each seed.
"""

import argparse
import itertools
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import yaml
from tqdm import tqdm

from dml import runs

Job = tuple[str, dict]  # a recipe, and what to change in it: the arguments of `runs.execute`


def expand(path: Path) -> list[Job]:
    """The runs of a grid, each checked before any of them starts.

    Raises:
        FileNotFoundError, ValueError: no such grid, with those there are; a grid that is not one; a
            run that is not valid, or that has the name of another.
    """
    if not path.exists():
        grids = sorted(str(grid.relative_to(runs.ROOT)) for grid in runs.RECIPES.glob("grid-*"))
        raise FileNotFoundError(f"no grid {path}. There are: {', '.join(grids)}")
    grid = yaml.safe_load(path.read_text())
    if not isinstance(grid, dict) or not {"recipe", "runs"} <= grid.keys():
        raise ValueError(f"{path} is not a grid: it needs `recipe` and `runs`")
    recipe, groups = grid.pop("recipe"), grid.pop("runs")
    jobs: dict[str, Job] = {}
    for group in groups:
        group = grid | group
        values = [v if isinstance(v, list) else [v] for v in group.values()]
        for chosen in itertools.product(*values):
            settings = dict(zip(group, chosen, strict=True))
            settings = {key: _filled(value, settings) for key, value in settings.items()}
            name = runs.configure(recipe, settings).id
            if name in jobs:
                raise ValueError(f"{path} has two runs called {name}: give one a tag")
            jobs[name] = (recipe, settings)
    return list(jobs.values())


def _filled(value, settings: dict):
    """`value` with the names in braces of its texts replaced by settings."""
    if isinstance(value, dict):
        texts = {key: _filled(v, settings) for key, v in value.items() if isinstance(v, str)}
        return value | {key: yaml.safe_load(text) for key, text in texts.items()}
    return value.format(**settings) if isinstance(value, str) else value


def sweep(jobs: list[Job], executor) -> dict[str, Exception]:
    """Make the runs of `jobs`, those that are finished excepted; go on past one that fails.

    Args:
        jobs: from `expand`.
        executor: submits calls: of `concurrent.futures`, or submitit's.

    Returns:
        What went wrong, by the run's name: empty if all is well.
    """
    waiting = {runs.configure(*job).id: executor.submit(runs.execute, *job) for job in jobs}
    failed = {}
    for name, job in tqdm(waiting.items(), unit="run"):
        try:
            job.result()
        except Exception as error:  # whatever stopped one run must not stop the others
            failed[name] = error
    return failed


def executor(where: str, at_once: int, slurm: dict):
    """What runs the jobs: processes of this machine, or submitit's local or SLURM executor."""
    if where == "here":
        threads = str(max(1, (os.cpu_count() or 1) // at_once))
        os.environ.setdefault("OMP_NUM_THREADS", threads)  # inherited by what is started
        return ProcessPoolExecutor(at_once, mp_context=get_context("spawn"))
    import submitit  # an extra of this package: pip install -e ".[cluster]"

    logs = runs.results() / "submitit"
    made = submitit.AutoExecutor(folder=logs, cluster=where)
    made.update_parameters(timeout_min=24 * 60, slurm_array_parallelism=at_once, **slurm)
    return made


def _finished(job: Job) -> bool:
    try:
        return runs.finished(runs.configure(*job)) is not None
    except ValueError:  # a record that is damaged or of other settings: the run will say so
        return False


def main(arguments: list[str] | None = None) -> None:
    """The command line behind `make sweep`."""
    parser = argparse.ArgumentParser(prog="python -m dml.sweep", description=__doc__)
    parser.add_argument("grid", type=Path)
    parser.add_argument("--on", choices=["here", "local", "slurm"], default="here")
    parser.add_argument("--at-once", type=int, default=1, help="runs at a time")
    parser.add_argument(
        "--slurm", nargs="*", default=[], metavar="NAME=VALUE", help="slurm_partition=gpu ..."
    )
    given = parser.parse_args(arguments)
    os.chdir(runs.ROOT)
    try:
        jobs = expand(given.grid)
    except (ValueError, FileNotFoundError) as error:
        parser.exit(2, f"{error}\n")
    missing = [job for job in jobs if not _finished(job)]
    print(f"{len(jobs)} runs, {len(jobs) - len(missing)} of them finished")
    if not missing:
        return
    slurm = {
        name: yaml.safe_load(value) for name, _, value in (x.partition("=") for x in given.slurm)
    }
    failed = sweep(missing, executor(given.on, given.at_once, slurm))
    for name, error in failed.items():
        lines = str(error).strip().splitlines() or [repr(error)]  # often a whole traceback
        print(f"failed: {name}: {next((x for x in lines[::-1] if 'Error: ' in x), lines[-1])}")
    if failed:
        parser.exit(1, f"{len(failed)} of {len(missing)} runs failed\n")


if __name__ == "__main__":
    main()
