"""How the book's figures look: one style, three sizes, and a colour that means the same everywhere.

Functions take data and return the figure; captions and alternative texts belong to the chapters' cells.
"""

import matplotlib as mpl
import matplotlib.pyplot as plt
import seaborn as sns

# inches; a page of the book is as wide as "wide"
SIZE = {"small": (4.0, 3.0), "medium": (6.0, 3.75), "wide": (8.0, 3.75)}

# Okabe and Ito's palette, told apart with any colour vision; the names are those of the records
COLOUR = {
    "none": "#5f6368",  # the baseline: no mixing
    "input": "#e69f00",
    "feature": "#0072b2",
    "embed": "#009e73",
    "published": "#cc79a7",  # the papers' own numbers
    "positive": "#56b4e9",
    "negative": "#d55e00",
}
CARD = "#ffffff"  # behind every figure, so that its ink reads on a light and on a dark page


def use_style() -> None:
    """Set the book's look for every figure made after it; in a notebook, figures become SVG."""
    sns.set_theme(
        context="notebook",
        style="ticks",
        palette=[COLOUR[name] for name in ("none", "feature", "input", "embed", "published")],
        rc={
            "figure.figsize": SIZE["medium"],
            "figure.facecolor": CARD,
            "figure.constrained_layout.use": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.titlesize": "medium",
            "grid.color": "#e4e6e8",
            "grid.linewidth": 0.8,
            "legend.frameon": False,
            "lines.linewidth": 1.8,
            "savefig.facecolor": CARD,
            "svg.fonttype": "path",  # the same letters on every machine
            "svg.hashsalt": "dml",  # the same figure gives the same file
        },
    )
    if mpl.get_backend() == "module://matplotlib_inline.backend_inline":
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        set_matplotlib_formats("svg", metadata={"Date": None})


def interactive(figure):
    """A plotly figure that the rendered page shows without a kernel or a network, and JupyterLab as it does.

    Args:
        figure: a `plotly.graph_objects.Figure`, whose colours should be those of `COLOUR`.

    Returns:
        An object to end a cell with.
    """
    from plotly import io

    figure.update_layout(template="plotly_white", paper_bgcolor=CARD, plot_bgcolor=CARD)
    page = io.to_html(figure, include_plotlyjs="_static/plotly.min.js", full_html=False)
    return _Bundle(
        {**io.renderers["plotly_mimetype"].to_mimebundle(figure.to_dict()), "text/html": page}
    )


class _Bundle:
    """Shown as whichever of its forms the reader's program knows."""

    def __init__(self, forms: dict):
        self.forms = forms

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict:
        return self.forms


def run_curve(record: dict):
    """One run by epoch: training loss, and Recall@1 on the test classes.

    Args:
        record: as `dml.runs.read` returns it.
    """
    history = record["history"]
    tested = [row for row in history if "recall_at_1" in row]
    colour = COLOUR[record["config"]["mix"]]
    figure, (left, right) = plt.subplots(1, 2, figsize=SIZE["wide"])
    left.plot([row["epoch"] for row in history], [row["loss"] for row in history], color=colour)
    left.set(xlabel="epoch", ylabel="training loss")
    recall = [100 * row["recall_at_1"] for row in tested]
    right.plot([row["epoch"] for row in tested], recall, color=colour, marker="o", markersize=4)
    right.set(xlabel="epoch", ylabel="Recall@1 (%)")
    return figure


def _pull_axes(axis, title: str) -> None:
    axis.axhline(0, color="#9aa0a6", linewidth=0.8)
    axis.set(title=title.replace("_", " "), xlim=(-1, 1))


def pulls(similarity, by_loss: dict):
    """How hard each loss pulls a lone positive and pushes a lone negative, a panel a loss.

    Args:
        similarity: (n,), of the candidate to the anchor.
        by_loss: name -> -dl/ds for a positive and for a negative, (n,) each.
    """
    figure, axes = plt.subplots(2, 4, figsize=(SIZE["wide"][0], 4.2), sharex=True)
    for axis, (name, (positive, negative)) in zip(axes.flat, by_loss.items(), strict=True):
        axis.plot(similarity, positive, color=COLOUR["positive"], label="on a positive")
        axis.plot(similarity, negative, color=COLOUR["negative"], label="on a negative")
        _pull_axes(axis, name)
    for axis in axes[1]:
        axis.set_xlabel("similarity $s$")
    figure.supylabel(r"pull, $-\partial\ell / \partial s$", fontsize="medium")
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


def additivity(similarity, by_loss: dict):
    """The push on a negative alone and in company, a panel a loss.

    Args:
        similarity: (n,), of the negative.
        by_loss: name -> -dl/ds alone and beside another negative, (n,) each.
    """
    figure, axes = plt.subplots(1, len(by_loss), figsize=SIZE["wide"], sharex=True)
    for axis, (name, (alone, beside)) in zip(axes, by_loss.items(), strict=True):
        axis.plot(similarity, alone, color=COLOUR["negative"], label="alone")
        axis.plot(similarity, beside, color="black", linestyle="--", label="beside another")
        _pull_axes(axis, name)
        axis.set_xlabel("similarity $s$")
    axes[0].set_ylabel(r"$-\partial\ell / \partial s$ of the negative")
    axes[0].legend()
    return figure


def two_forms(similarity, by_form: dict):
    """Pull on a positive and push on a negative for two forms of one loss, a panel each.

    Args:
        similarity: (n,), of the candidate.
        by_form: name -> -dl/ds for a positive and for a negative, (n,) each.
    """
    figure, axes = plt.subplots(1, 2, figsize=SIZE["wide"], sharex=True)
    for (name, curves), style in zip(by_form.items(), ("-", "--"), strict=True):
        for axis, curve, kind in zip(axes, curves, ("positive", "negative"), strict=True):
            axis.plot(similarity, curve, style, color=COLOUR[kind], label=name)
            _pull_axes(axis, f"on a {kind}")
            axis.set_xlabel("similarity $s$")
    axes[0].set_ylabel(r"$-\partial\ell / \partial s$")
    axes[1].legend()
    return figure
