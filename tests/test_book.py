"""The book is software: its pairs agree, its chapters run, its pages need no network."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlparse

import jupytext
import nbformat
import papermill
import pytest
import torch
from bs4 import BeautifulSoup
from matplotlib.colors import to_rgba

from dml import analysis, losses, plot, runs

ROOT = Path(__file__).resolve().parents[1]
BOOK = ROOT / "book"
CHAPTERS = sorted({path.stem for path in BOOK.glob("[0-9][0-9]_*.*")})
TRAINING = runs.TRAINING.stem  # tests/test_runs.py executes it, with a recipe


def notebook(chapter: str) -> nbformat.NotebookNode:
    return nbformat.read(BOOK / f"{chapter}.ipynb", 4)


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_notebook_and_script_agree_cell_by_cell(chapter):
    def cells(book):
        kept = ("tags", "mystnb")
        return [book.metadata.get("mystnb")] + [
            (c.cell_type, c.source.rstrip(), {k: c.metadata[k] for k in kept if k in c.metadata})
            for c in book.cells
        ]

    script = jupytext.read(BOOK / f"{chapter}.py")
    assert cells(notebook(chapter)) == cells(script), "make sync"


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_notebook_has_no_outputs(chapter):
    for cell in notebook(chapter).cells:
        assert not cell.get("outputs"), "make sync"
        assert cell.get("execution_count") is None, "make sync"


def test_every_equation_that_the_module_names_is_in_the_book():
    chapters = "".join(path.read_text() for path in BOOK.glob("[0-9]*.py"))
    for path in ROOT.glob("dml/*.py"):
        for name in set(re.findall(r"\beq-[a-z]+(?:-[a-z]+)*", path.read_text())):
            assert f"({name})" in chapters, f"{path.name}: {name}"


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_every_figure_has_a_caption_a_name_and_an_alternative_text(chapter):
    for cell in notebook(chapter).cells:
        shown = cell.metadata.get("mystnb", {})
        drawn = cell.cell_type == "code" and re.search(
            r"^plot\.(?!use_style)\w+\(", cell.source, re.M
        )
        if "figure" in shown or drawn:
            assert shown.get("figure", {}).get("caption"), cell.source
            assert shown["figure"].get("name"), cell.source
            assert shown.get("image", {}).get("alt"), cell.source


@pytest.mark.parametrize("chapter", [name for name in CHAPTERS if name != TRAINING])
def test_chapter_runs_and_shows_each_figure_once(chapter, tmp_path):
    executed = papermill.execute_notebook(
        BOOK / f"{chapter}.ipynb",
        tmp_path / "executed.ipynb",
        cwd=BOOK,
        kernel_name="python3",
        progress_bar=False,
        start_timeout=runs.START_TIMEOUT,
    )
    for cell in executed.cells:
        outputs = [output.get("data", {}) for output in cell.get("outputs", [])]
        assert sum("image/svg+xml" in data or "image/png" in data for data in outputs) <= 1
    text = "".join(cell.source for cell in executed.cells if cell.cell_type == "markdown")
    glued = {
        output.metadata["scrapbook"]["name"]: output["data"].values()
        for cell in executed.cells
        for output in cell.get("outputs", [])
        if "scrapbook" in output.get("metadata", {})
    }
    for key, _, form in re.findall(r"\{glue:\w+\}`([^`:]+)(:([^`]+))?`", text):
        assert key in glued, f"{chapter} shows {key}, which no cell has glued"
        if form:  # the build formats a number, and this fails where it would
            float(next(iter(glued[key])))


def test_the_knobs_of_jupyterlab_draw_what_attracts():
    (cell,) = [
        cell
        for cell in notebook("04_positivity").cells
        if "skip-execution" in cell.metadata.get("tags", [])
    ]
    z = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    here = {"z": z, "image_labels": torch.arange(20) // 5}
    exec("from dml import analysis, losses, plot", here)
    exec(cell.source, here)
    (axis,) = here["measured"](lam=0.3, beta=10, gamma=20, margin=0.1, alone=True).axes
    blue = to_rgba(plot.COLOUR["positive"])
    heights = [(bar.get_height(), bar.get_facecolor() == blue) for bar in axis.patches]
    drawn = sum(h for h, attracts in heights if attracts) / sum(h for h, _ in heights)
    loss = losses.multi_similarity(beta=10, gamma=20, margin=0.1)
    found = analysis.positivity(loss, z, here["image_labels"], 0.3, alone=True)
    assert drawn == pytest.approx(found.measured)
    assert 0 < drawn < 1


# -- The build, tried on a book of one page --------------------------------------------------

PAGE = """\
---
jupytext:
  text_representation:
    extension: .md
    format_name: myst
kernelspec:
  name: python3
---
# One page

$$ e^{{i \\pi}} = -1 $$ (eq-euler)

{{eq}}`eq-euler` is in {{cite:t}}`venkataramanan2022metrix`.

```{{code-cell}}
print("the module says", open("../dml/answer.py").read())
```

```{{code-cell}}
{code}
```
"""
FIGURES = """\
from plotly import graph_objects
from dml import plot

plot.use_style()
plot.interactive(graph_objects.Figure(graph_objects.Scatter(x=[0, 1], y=[0, 1])))
"""


class OnePage:
    """A book of one page with this book's configuration, extension and styles."""

    def __init__(self, root: Path):
        self.root = root
        self.html = root / "_build" / "html"
        shutil.copy(ROOT / "_config.yml", root)
        for part in ("_ext", "_static"):
            shutil.copytree(BOOK / part, root / "book" / part)
        shutil.copy(BOOK / "references.bib", root / "book")
        shutil.copy(BOOK / "references.md", root / "book")
        toc = "format: jb-book\nroot: index\nchapters:\n- file: references\n"
        (root / "book" / "_toc.yml").write_text(toc)
        (root / "dml").mkdir()

    def build(self, answer: str = "one", code: str = "", prose: str = "") -> int:
        (self.root / "dml" / "answer.py").write_text(answer)
        (self.root / "book" / "index.md").write_text(PAGE.format(code=code) + prose)
        command = [Path(sys.executable).with_name("jupyter-book"), "build", "book"]
        command += ["-W", "-n", "--keep-going"]
        done = subprocess.run(command, cwd=self.root, capture_output=True, text=True)
        self.log = done.stdout + done.stderr
        return done.returncode

    def page(self) -> BeautifulSoup:
        return BeautifulSoup((self.html / "index.html").read_text(), "html.parser")


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    return OnePage(tmp_path_factory.mktemp("book"))


def test_a_page_loads_nothing_from_the_network(book):
    assert book.build(code=FIGURES) == 0, book.log
    loaded = [
        (tag, tag.get("src") or tag.get("href"))
        for tag in book.page().select(
            "script[src], link[href], img[src], iframe[src], source[src], audio[src], video[src]"
        )
    ]
    addresses = [urlparse(address) for tag, address in loaded]
    assert len(addresses) > 10  # the theme's styles and scripts, at least
    for address in addresses:
        assert not address.scheme and not address.netloc, address.geturl()
        assert (book.html / address.path).exists(), address.geturl()
    assert "_static/plotly.min.js" in {address.path for address in addresses}
    assert any("mathjax" in address.path for address in addresses)
    for style in book.html.glob("_static/**/*.css"):
        assert not re.search(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", style.read_text()), style


def test_a_change_in_the_module_shows_in_the_next_build(book):
    table = 'from IPython.display import Markdown\nMarkdown("| a |\\n|---|\\n| in a table |")'
    assert book.build("forty-two", code=table) == 0, book.log
    assert "in a table" in [cell.get_text() for cell in book.page().select("table td")]
    assert "the module says forty-two" in book.page().get_text()


def test_a_build_with_a_warning_fails_and_fails_again(book):
    for _ in range(2):
        assert book.build(prose="\n[a page that is not there](missing.md)\n") != 0
        assert "missing.md" in book.log


def test_a_cell_that_fails_stops_the_build(book):
    assert book.build(code="1 / 0") != 0
    assert "ZeroDivisionError" in book.log


def test_no_page_of_the_rendered_book_loads_from_the_network():
    pages = sorted((ROOT / "_build" / "html").glob("*.html"))
    if not pages:
        pytest.skip("the book is not rendered here")
    for path in pages:
        page = BeautifulSoup(path.read_text(), "html.parser")
        for tag in page.select("script[src], link[href], img[src], iframe[src], source[src]"):
            address = urlparse(tag.get("src") or tag.get("href"))
            assert address.scheme in ("", "data"), f"{path.name}: {address.geturl()}"
            assert not address.netloc, f"{path.name}: {address.geturl()}"


def test_chapters_are_executed_side_by_side_and_one_that_fails_stops_the_build(tmp_path):
    book = OnePage(tmp_path)
    names = ("first", "second")
    toc = tmp_path / "book" / "_toc.yml"
    toc.write_text(toc.read_text() + "".join(f"- file: {name}\n" for name in names))

    def write(name, code):
        cells = [nbformat.v4.new_markdown_cell(f"# {name}"), nbformat.v4.new_code_cell(code)]
        notebook = nbformat.v4.new_notebook(cells=cells)
        notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3"}
        nbformat.write(notebook, tmp_path / "book" / f"{name}.ipynb")

    write("first", "print(6 * 7)")
    write("second", "1 / 0")
    assert book.build() != 0
    assert "ZeroDivisionError" in book.log
    for name in names:
        assert re.search(rf"ForkPoolWorker-\d+\] Executing: .*{name}\.ipynb", book.log)
    write("second", "print(6 * 9)")
    assert book.build() == 0, book.log
    shown = [(book.html / f"{name}.html").read_text() for name in names]
    assert "42" in shown[0] and "54" in shown[1]
    assert re.search(r"first\.ipynb: .*Using cached", book.log), "it is not executed again"
