"""Laws of records: whole or not at all, made once, and every bad one named."""

import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import stats

from dml import runs, train

TINY = {"dataset": "digits", "epochs": 1, "embedding_size": 8, "profile": "smoke", "device": "cpu"}


@pytest.fixture(autouse=True)
def results(tmp_path, monkeypatch):
    monkeypatch.setenv("DML_RESULTS", str(tmp_path / "results"))
    return tmp_path / "results"


OUTCOME = {
    "metrics": {
        "last": {"epoch": 1, "recall_at_1": 0.5, "selected_by": "the last epoch"},
        "best": {"epoch": 1, "recall_at_1": 0.5, "selected_by": "recall_at_1 on the test classes"},
    },
    "history": [{"epoch": 1, "loss": 1.0, "recall_at_1": 0.5}],
    "seconds": {"train": 1.0, "evaluate": 0.1},
    "images_per_second": 10.0,
    "peak_memory_mb": None,
    "device": "CPU",
}


def test_a_record_reads_back_as_it_was_written_and_drops_the_checkpoint():
    config = train.Config(**TINY)
    runs.folder(config.id).mkdir(parents=True)
    runs.checkpoint(config.id).mkdir()
    record = runs.write(config, OUTCOME)
    assert record == runs.read(runs.folder(config.id) / "record.json") == runs.finished(config)
    assert record["metrics"] == OUTCOME["metrics"] and record["versions"]["torch"]
    assert not runs.checkpoint(config.id).exists()
    (runs.folder(config.id) / "checkpoint.pt").touch()  # a file is not one, and stops nothing
    runs.drop_checkpoints(config.id)
    (runs.folder(config.id) / "checkpoint.pt").unlink()
    assert [path.name for path in runs.folder(config.id).iterdir()] == ["record.json"]


def test_a_record_is_written_whole_or_not_at_all(monkeypatch):
    config = train.Config(**TINY)
    runs.write(config, OUTCOME)

    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(json, "dump", full_disk)
    with pytest.raises(OSError, match="No space"):
        runs.write(config, OUTCOME | {"device": "another"})
    assert runs.finished(config)["device"] == "CPU"


def test_a_record_from_before_a_setting_came_has_its_default():
    config = train.Config(**TINY)
    runs.write(config, OUTCOME)
    path = runs.folder(config.id) / "record.json"
    older = json.loads(path.read_text())
    del older["config"]["folds"]
    path.write_text(json.dumps(older))
    assert runs.finished(config)["config"]["folds"] == 0
    assert runs.load(folds=0)["id"].tolist() == [config.id]


@pytest.mark.parametrize("text", ['{"id": "digi', "[]", '{"id": 1}', ""])
def test_a_half_written_record_is_named(text):
    config = train.Config(**TINY)
    path = runs.folder(config.id) / "record.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    for look in (lambda: runs.finished(config), runs.load):
        with pytest.raises(ValueError, match=r"record.json is not a whole record"):
            look()


def test_a_record_with_other_settings_is_not_taken_for_this_run():
    runs.write(train.Config(**TINY), OUTCOME)
    with pytest.raises(ValueError, match=r"other settings \(weight 0.4 -> 0.3\).*tag"):
        runs.finished(train.Config(**TINY, weight=0.3))
    assert runs.finished(train.Config(**TINY, weight=0.3, tag="w0.3")) is None
    assert runs.finished(train.Config(**{**TINY, "device": "auto"})) is not None


def test_records_make_a_table_that_selects_by_setting():
    for seed in range(3):
        for mix in ("none", "embed"):
            runs.write(train.Config(**TINY, seed=seed, mix=mix), OUTCOME)
    assert len(runs.load()) == 6
    assert list(runs.load(mix="none", seed=[0, 2])["id"]) == [
        "digits-multi_similarity-none-s0-smoke",
        "digits-multi_similarity-none-s2-smoke",
    ]
    with pytest.raises(ValueError, match=r"no such setting: mixx. Valid are: .*mix"):
        runs.load(mixx="none")
    assert len(runs.load(dataset="glyphs")) == 0
    curve = runs.history(runs.load(mix="none"))
    assert len(curve) == 3 and set(curve["seed"]) == {0, 1, 2}
    assert set(curve["loss"]) == {"multi_similarity"} and curve["training_loss"].notna().all()


def test_no_records_make_an_empty_table():
    assert len(runs.load(dataset="glyphs")) == 0


def test_no_records_make_no_differences():
    assert not len(runs.gains(runs.load(tag="methods")))


@pytest.mark.parametrize("name", runs.recipe_names())
def test_every_recipe_is_a_valid_configuration(name):
    config, path = runs.configure(name, {}), runs.RECIPES / f"{name}.yaml"
    assert config.dataset in name
    assert path.read_text().startswith("#"), "a recipe opens with what it is and what it takes"
    assert yaml.safe_load(path.read_text()).keys() <= {f for f in train.Config.__dataclass_fields__}


def test_an_unknown_recipe_or_parameter_stops_before_any_work(results):
    with pytest.raises(ValueError, match=r"no recipe 'glyfs'. There are: .*glyphs"):
        runs.execute("glyfs", {})
    with pytest.raises(ValueError, match=r"no such parameter: los. Valid are: .*loss"):
        runs.execute("digits", {"los": "nca"})
    assert not results.exists()


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "dml.runs", *arguments],
        capture_output=True,
        text=True,
        env=os.environ.copy(),
    )


def test_the_command_makes_a_run_once_with_record_and_notebook(results):
    arguments = ("run", "--recipe", "digits", "--set", "mix=embed", "epochs=1", "device=cpu")
    first = command(*arguments)
    assert first.returncode == 0, first.stderr
    folder = results / "runs" / "digits-multi_similarity-embed-s0-smoke"
    left = {path.name for path in folder.iterdir()}
    assert left == {"record.json", "tensorboard", "training.ipynb"}
    record = json.loads((folder / "record.json").read_text())
    assert record["config"]["mix"] == "embed" and 0 < record["metrics"]["last"]["recall_at_1"] <= 1
    stamp = (folder / "record.json").stat().st_mtime_ns
    assert command(*arguments).stdout == first.stdout
    assert (folder / "record.json").stat().st_mtime_ns == stamp
    for name in ("record.json", "training.ipynb"):
        assert str(runs.ROOT) not in (folder / name).read_text(), (
            "a record names no folder of a machine"
        )


def test_the_command_says_what_is_wrong_without_a_traceback(results):
    outcome = command("run", "--recipe", "digits", "--set", "loss=triplet")
    assert outcome.returncode == 2
    assert "loss='triplet'" in outcome.stderr and "Traceback" not in outcome.stderr
    outcome = command("run", "--set", "loss")
    assert outcome.returncode == 2 and "NAME=VALUE" in outcome.stderr


def test_many_comparisons_are_corrected_by_holms_method():
    differences = {"a": [1.0, 1.2, 0.9], "b": [0.1, -0.2, 0.3], "c": [2.0, 2.5, 1.0], "one": [1.0]}
    rows = pd.DataFrame(
        {"mix": mix, "seeds": len(d), "mean": np.mean(d), "std": np.std(d, ddof=1) if d[1:] else 0}
        for mix, d in differences.items()
    )
    tested = runs.tested(rows).set_index("mix")
    several = {mix: d for mix, d in differences.items() if len(d) > 1}
    p = {mix: stats.ttest_1samp(d, 0).pvalue for mix, d in several.items()}
    assert tested["p"].to_dict() == pytest.approx(p)
    largest = 0.0
    for rank, mix in enumerate(sorted(p, key=p.get)):
        largest = max(largest, (len(p) - rank) * p[mix])
        assert tested["holm"][mix] == pytest.approx(min(1, largest))


def test_a_verdict_counts_what_the_comparisons_are():
    rows = pd.DataFrame(
        [
            ("b", "up", 1.0, 0.5, 1.5, 0.01),
            ("a", "down", -2.0, -3.0, -1.0, 0.02),
            ("a", "level", -0.1, -1.0, 0.8, 1.0),
        ],
        columns=["group", "label", "mean", "low", "high", "holm"],
    ).assign(detectable=[0.7, 0.9, 1.3])
    said = runs.verdict(rows)
    assert "3 comparisons" in said and "positive in 1 and negative in 2" in said
    assert "1 intervals lie wholly above zero and 1 wholly below" in said
    assert "baseline: b up (+1.0); a down (-2.0)." in said and "0.9 points" in said
    assert "baseline: none." in runs.verdict(rows[2:])
    assert runs.verdict(rows[:0]) == "There are no such runs yet."


def test_comparisons_are_named_in_the_order_of_losses_and_methods():
    rows = pd.DataFrame({"loss": ["b_b", "a", "a"], "mix": ["embed", "mochi", "input"]})
    named = runs.named(rows)
    assert named["group"].tolist() == ["a", "a", "b b"]
    assert named["label"].tolist() == ["Metrix, input", "MoCHi", "Metrix, embedding"]
