"""What is made from the records alone: tables, figures, README's numbers (book/07_results)."""

from __future__ import annotations

import os
from pathlib import Path

from dml import classification, data, plot, runs


def write() -> list[Path]:
    """Make everything anew that is made from the records: results/summary.csv and
    results/mbdml.csv, the table in README.md, and the figures that it shows. Returns what was
    written."""
    rows, folder, readme = runs.headline(), runs.results(), runs.ROOT / "README.md"
    table, few_labels, figures = folder / "summary.csv", folder / "mbdml.csv", folder / "figures"
    figures.mkdir(exist_ok=True)
    rows.round(3).to_csv(table, index=False)
    classification.results().round(3).to_csv(few_labels)
    readme.write_text(with_table(readme.read_text(), runs.markdown(rows)))
    plot.use_style()
    unseen = data.load("glyphs").query
    sample = range(0, len(unseen.classes), len(unseen.classes) // 6)[:6]
    drawn = {unseen.classes[c]: unseen.images[unseen.labels == c] for c in sample}
    curves = runs.history(runs.load(dataset="glyphs", profile="paper", tag="", folds=0))
    written = {
        figures / "glyphs.svg": plot.class_grid(drawn),
        figures / "curves.svg": plot.learning_curves(curves, runs.METHODS),
    }
    for path, figure in written.items():
        figure.savefig(path, metadata={"Date": None})
    return [table, few_labels, readme, *written]


def with_table(text: str, table: str) -> str:
    """The text with what stands between its two table markers replaced."""
    start, end = "<!-- table: results -->", "<!-- end of table -->"
    if start not in text or end not in text:
        raise ValueError(f"README.md lacks the markers {start} and {end}")
    before, after = text.split(start)[0], text.split(end)[1]
    return f"{before}{start}\n\n{table}\n\n{end}{after}"


if __name__ == "__main__":
    print(*map(os.path.relpath, write()), sep="\n")
