"""README says what is there, runs what it shows, and shows what the records hold."""

import re
import subprocess
from pathlib import Path

import pytest

from dml import report, runs

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def shell_lines() -> list[str]:
    lines = [
        line.split("  #")[0].strip() for block in blocks("bash") for line in block.splitlines()
    ]
    return [line for line in lines if line]


def test_the_table_is_made_from_the_records():
    assert report.with_table(README, runs.markdown(runs.headline())) == README, "make results"


def test_a_readme_without_a_place_for_the_table_is_refused():
    with pytest.raises(ValueError, match="lacks the markers <!-- table: results -->"):
        report.with_table("# A title", "")


def test_every_link_and_image_leads_somewhere():
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    assert targets
    for target in targets:
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_every_file_that_is_named_exists():
    for name in re.findall(r"`([\w/.]+\.\w+|[\w]+/)`", README):
        assert (ROOT / name).exists() or "NN_" in name, name


@pytest.mark.parametrize("code", blocks("python"))
def test_the_python_runs(code):
    exec(compile(code, "README.md", "exec"), {})


@pytest.mark.parametrize("line", [line for line in shell_lines() if line.startswith("make")])
def test_every_make_command_is_one(line):
    done = subprocess.run(f"{line} -n", shell=True, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_run_that_is_shown_is_valid():
    for line in shell_lines():
        if line.startswith("make run"):
            given = dict(re.findall(r"(\w+)=(\"[^\"]*\"|\S+)", line.removeprefix("make run")))
            more = dict(pair.split("=", 1) for pair in given.pop("SET", "").strip('"').split())
            recipe = given.pop("DATASET", "glyphs")
            values = {name.lower(): value for name, value in given.items()} | more
            runs.configure(recipe, {name: runs.yaml.safe_load(v) for name, v in values.items()})
        elif line.startswith("papermill"):
            assert all((ROOT / path).exists() for path in re.findall(r"book/[\w/.]+", line))
