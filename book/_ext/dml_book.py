"""What the build of this book needs beyond Jupyter Book 1.

1. Jupyter Book executes a chapter again when the chapter's code changes, and only then. Here a
   chapter also depends on the module, the recipes and the results, so their hash is part of the
   place where executed chapters are kept: change any of them and every chapter is executed again.
2. Interactive figures load plotly from the book itself, so that the pages need no network.
3. Sphinx warns of a page when it reads it, and reads it again only when it changes. After a build
   with warnings every page is read again, so that building twice does not make an error go away.
4. Chapters that have to be executed are executed side by side, a process a core, before Sphinx
   reads one after the other; one that fails is left to it, which says what is wrong.
5. Sphinx 7.4 adds some scripts to a page twice, which is an error in the browser.
"""

import hashlib
import logging
import os
import shutil
from importlib import resources
from pathlib import Path

import nbformat
from jupyter_cache import get_cache
from jupyter_cache.executors import load_executor

ROOT = Path(__file__).resolve().parents[2]
INPUTS = (
    "dml/**/*.py",
    "book/recipes/*.yaml",
    "results/**/*.json",
    "results/**/*.csv",
    "requirements.txt",
)


def inputs_hash(root: Path = ROOT) -> str:
    """Hash of the names and contents of everything that an executed chapter may depend on."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in INPUTS for path in root.glob(pattern)}):
        digest.update(f"{path.relative_to(root)}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def keep_executed_chapters_by_inputs(app, config):
    """Sphinx reads every page again when this setting changes, and finds an empty cache."""
    cache = Path(app.outdir).parent / ".jupyter_cache"
    config.nb_execution_cache_path = str(cache / inputs_hash())
    for old in cache.glob("*"):
        if old != Path(config.nb_execution_cache_path):
            shutil.rmtree(old) if old.is_dir() else old.unlink()


def execute_side_by_side(app, env, docnames):
    cache = get_cache(app.config.nb_execution_cache_path)
    staged = []
    for path in (Path(env.doc2path(name)) for name in docnames):
        if path.suffix != ".ipynb":
            continue
        book = nbformat.read(path, 4)
        forced = "execution_mode" in book.metadata.get("mystnb", {})
        if not forced and not _is_cached(cache, book):
            staged.append(cache.add_nb_to_project(str(path)).pk)
    if len(staged) > 1:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # a core has one chapter to do
        logger = logging.getLogger("chapters")
        logger.setLevel(logging.INFO)
        executor = load_executor("local-parallel", cache, logger)
        executor.run_and_cache(filter_pks=staged, timeout=app.config.nb_execution_timeout)


def _is_cached(cache, book) -> bool:
    try:
        cache.match_cache_notebook(book)
    except KeyError:
        return False
    return True


def read_forced_pages_again(app, env, added, changed, removed):
    """A page that asks to be executed by every build (`execution_mode: force`) is."""
    pages = env.found_docs - added - changed
    return [p for p in pages if env.nb_metadata[p].get("exec_data", {}).get("method") == "force"]


def forget_pages_read_with_warnings(app, error):
    if app._warncount:
        (Path(app.doctreedir) / "environment.pickle").unlink(missing_ok=True)


def bring_plotly(app, error):
    if error is None and app.builder.format == "html":
        plotly = resources.files("plotly") / "package_data" / "plotly.min.js"
        with resources.as_file(plotly) as path:
            shutil.copy2(path, Path(app.outdir) / "_static")


def drop_repeated_scripts(app, pagename, templatename, context, doctree):
    scripts = context["script_files"]
    once = {(s.filename or "", *sorted(s.attributes.items())): s for s in scripts}
    context["script_files"] = list(once.values())


def setup(app):
    app.connect("config-inited", keep_executed_chapters_by_inputs)
    app.connect("env-get-outdated", read_forced_pages_again)
    app.connect("env-before-read-docs", execute_side_by_side)
    app.connect("html-page-context", drop_repeated_scripts, priority=900)
    app.connect("build-finished", forget_pages_read_with_warnings)
    app.connect("build-finished", bring_plotly)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
