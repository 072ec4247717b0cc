"""Laws of sweeps: a grid is checked whole, finished runs are skipped, a failed run stops no
other."""

import pytest

from dml import runs, sweep
from tests.test_runs import OUTCOME

GRID = """
recipe: digits
epochs: 1
device: cpu
runs:
  - {mix: none, seed: [0, 1, 2]}
"""


@pytest.fixture(autouse=True)
def results(tmp_path, monkeypatch):
    monkeypatch.setenv("DML_RESULTS", str(tmp_path / "results"))
    monkeypatch.chdir(runs.ROOT)
    return tmp_path / "results"


def grid(tmp_path, text):
    path = tmp_path / "grid.yaml"
    path.write_text(text)
    return path


def test_a_list_stands_for_a_run_for_each_of_its_values(tmp_path):
    text = "{recipe: digits, seed: [0, 1], runs: [{mix: none}, {mix: [input, embed], k: [[1, 2]]}]}"
    jobs = sweep.expand(grid(tmp_path, text))
    assert [(job["mix"], job["seed"]) for _, job in jobs] == [
        *(("none", seed) for seed in (0, 1)),
        *((mix, seed) for seed in (0, 1) for mix in ("input", "embed")),
    ]
    assert jobs[-1] == ("digits", {"seed": 1, "mix": "embed", "k": [1, 2]})


def test_a_tag_is_made_of_the_settings(tmp_path):
    text = '{recipe: digits, runs: [{hardest: [1, null], tag: "k={hardest}"}]}'
    assert [job["tag"] for _, job in sweep.expand(grid(tmp_path, text))] == ["k=1", "k=None"]


def test_an_option_may_follow_a_setting(tmp_path):
    text = """
    recipe: glyphs
    dataset_options: {classes: 40, seed: "{seed}"}
    runs: [{seed: [0, 3]}]
    """
    options = [job["dataset_options"] for _, job in sweep.expand(grid(tmp_path, text))]
    assert options == [{"classes": 40, "seed": 0}, {"classes": 40, "seed": 3}]


@pytest.mark.parametrize("path", sorted(runs.RECIPES.glob("grid-*")), ids=lambda path: path.stem)
def test_every_grid_is_valid(path):
    assert sweep.expand(path)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("{recipe: digits}", "it needs `recipe` and `runs`"),
        ("{recipe: digit, runs: [{seed: 0}]}", "no recipe 'digit'"),
        ("{recipe: digits, runs: [{seed: 0}, {los: nca}]}", "no such parameter: los"),
        ("{recipe: digits, runs: [{weight: [0.1, 0.2]}]}", "two runs called .*: give one a tag"),
    ],
)
def test_a_grid_with_an_error_is_refused_before_any_run(tmp_path, text, wrong):
    with pytest.raises(ValueError, match=wrong):
        sweep.expand(grid(tmp_path, text))


def test_a_grid_that_is_not_there_is_answered_with_those_that_are(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no grid .*none.yaml.*grid-glyphs.yaml"):
        sweep.expand(tmp_path / "none.yaml")


@pytest.mark.parametrize("where", ["here", "local"])
def test_only_what_is_missing_is_run_and_a_failed_run_stops_no_other(tmp_path, where, capsys):
    """Here, and through submitit, as on a cluster."""
    path = grid(tmp_path, GRID)
    finished, damaged, missing = [runs.configure(*job) for job in sweep.expand(path)]
    runs.write(finished, OUTCOME)
    runs.write(damaged, OUTCOME)
    (runs.folder(damaged.id) / "record.json").write_text("{")
    with pytest.raises(SystemExit) as stop:
        sweep.main([str(path), "--on", where])
    assert stop.value.code == 1
    said = capsys.readouterr().out
    assert "3 runs, 1 of them finished" in said
    assert f"failed: {damaged.id}: " in said and "not a whole record" in said
    assert runs.finished(missing)["metrics"]["last"]["recall_at_1"] > 0
    assert runs.finished(finished)["device"] == OUTCOME["device"]
