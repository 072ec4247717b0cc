"""The files around the code agree with each other and with what they say."""

import os
import re
import subprocess
import tomllib
from fnmatch import fnmatch
from itertools import chain
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pybtex.database import parse_file

ROOT = Path(__file__).resolve().parents[1]
BOOK = ROOT / "book"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
NEEDS = list(chain(PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()))
PINS = [Requirement(line) for line in (ROOT / "requirements.txt").read_text().splitlines()]
VERBS = (
    "help",
    "book",
    "test",
    "lab",
    "run",
    "sweep",
    "results",
    "bench",
    "sync",
    "lint",
    "lock",
    "clean",
)
PAPERS = ("venkataramanan2022metrix", "buris2022mbdml", "zhu2020proxygml")


def make(*arguments: str) -> str:
    done = subprocess.run(
        ["make", "--no-print-directory", *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    assert listed.returncode == 0, listed.stderr
    paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    return [path for path in paths if path.is_file()]  # a deletion may not be committed yet


@pytest.mark.parametrize("need", NEEDS)
def test_every_dependency_is_pinned_at_a_version_it_allows(need):
    need = Requirement(need)
    pins = [pin for pin in PINS if canonicalize_name(pin.name) == canonicalize_name(need.name)]
    assert pins, f"{need.name} is not pinned: make lock"
    for pin in pins:
        (version,) = (part.version for part in pin.specifier)
        assert need.specifier.contains(version), f"{pin} is not {need}: make lock"


def test_every_pin_is_one_exact_version():
    for pin in PINS:
        assert [part.operator for part in pin.specifier] == ["=="], pin
        assert pin.url is None, pin


def test_conda_and_make_install_exactly_the_pins():
    install = ["-c requirements.txt", "-e .[book,test]"]
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert conda == [f"python{PROJECT['requires-python']}", "pip", {"pip": install}]
    recipe = (ROOT / "Makefile").read_text().replace('"', "")
    assert " ".join(install) in recipe
    assert {"book", "test"} <= PROJECT["optional-dependencies"].keys()


@pytest.mark.parametrize("name", ["pyproject.toml", "requirements.txt", "environment.yml"])
def test_no_registry_is_named(name):
    assert not re.search(r"://|index-url|find-links", (ROOT / name).read_text())


def test_every_package_of_the_module_is_installed():
    found = {".".join(p.parent.relative_to(ROOT).parts) for p in ROOT.glob("dml/**/__init__.py")}
    assert set(PYPROJECT["tool"]["setuptools"]["packages"]) == found


def test_help_lists_every_verb():
    listed = [line.split()[0] for line in make("help").splitlines()]
    assert sorted(listed) == sorted(VERBS)
    (phony,) = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)
    assert sorted(phony.split()) == sorted(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_something_to_do(verb):
    assert make("-n", verb).strip()


def test_make_run_passes_its_variables_on():
    plan = make("-n", "run", "DATASET=digits", "LOSS=nca", "MIX=embed", "SEED=3", "SET=epochs=1")
    assert "--recipe digits --set loss=nca mix=embed seed=3 epochs=1" in plan


def test_make_bench_runs_every_benchmark():
    plan = make("-n", "bench")
    for path in ROOT.glob("benchmarks/*.py"):
        assert f"benchmarks/{path.name}" in plan


def test_every_make_command_that_is_told_exists():
    for page in [*BOOK.glob("*.md"), *BOOK.glob("[0-9]*.py"), *ROOT.glob("*.md")]:
        told = re.findall(r"(?:`|^(?:# )?)make ([a-z]+)", page.read_text(), re.M)
        assert set(told) <= set(VERBS), page.name


def test_continuous_integration_runs_the_tests():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "make test" in script.read_text()


def test_no_tracked_file_names_a_folder_of_somebodys_machine():
    personal = re.compile(rf"/(?:home|Users|root)/\w|[A-Z]:\\+Users|{re.escape(str(ROOT))}\b")
    for path in tracked():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue  # not text
        assert not (found := personal.search(text)), f"{path.relative_to(ROOT)}: {found[0]}"


def test_the_table_of_contents_lists_every_chapter_and_nothing_else():
    toc = yaml.safe_load((BOOK / "_toc.yml").read_text())
    pages = {path.stem for path in BOOK.iterdir() if path.suffix in (".md", ".ipynb")}
    listed = {toc["root"]}
    for entry in toc["chapters"]:
        matches = {page for page in pages if fnmatch(page, entry.get("glob", entry.get("file")))}
        assert matches, f"no page is {entry}"
        listed |= matches
    assert listed == pages


def test_the_three_papers_are_cited_as_in_the_bibliography():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    entries = parse_file(BOOK / "references.bib").entries
    assert len(citation["references"]) == len(PAPERS)
    for reference, key in zip(citation["references"], PAPERS, strict=True):
        entry = entries[key]
        assert reference["title"] == entry.fields["title"]
        assert str(reference["year"]) == entry.fields["year"]
        families = [" ".join(person.last_names) for person in entry.persons["author"]]
        assert [author["family-names"] for author in reference["authors"]] == families
