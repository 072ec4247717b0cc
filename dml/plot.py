"""How the book's figures look: one style, three sizes, a colour that means the same everywhere.

Functions take data and return the figure; captions and alternative texts belong to the cells that
call them.
"""

import base64
import hashlib
import io
import json
import math
import re
from pathlib import Path

import matplotlib as mpl
import seaborn as sns
import torch
import torch.nn.functional as F
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from matplotlib.patches import Circle
from torchvision.utils import make_grid

# inches; a page of the book is as wide as "wide"
SIZE = {"small": (4.0, 3.0), "medium": (6.0, 3.75), "wide": (8.0, 3.75)}

# Okabe and Ito's palette, told apart with any colour vision; the names are those of the records
COLOUR = {
    "none": "#5f6368",  # the baseline: no mixing
    "input": "#e69f00",
    "feature": "#0072b2",
    "embed": "#009e73",
    "imix": "#882255",  # the other methods have Tol's muted colours
    "mochi": "#332288",
    "embedding_expansion": "#999933",
    "proxy_synthesis": "#aa4499",
    "input_ce": "#cc6677",
    "idml": "#117733",
    "published": "#cc79a7",  # the papers' own numbers
    "positive": "#56b4e9",
    "negative": "#d55e00",
}
# a label between 0, negative, and 1, positive
LABELS = LinearSegmentedColormap.from_list(
    "labels", [COLOUR["negative"], "#f4f4f4", COLOUR["positive"]]
)
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


def interactive(figure, script: str | None = None):
    """A plotly figure that works in the rendered page without kernel or network, and in JupyterLab.

    Args:
        figure: a `plotly.graph_objects.Figure`, whose colours should be those of `COLOUR`.
        script: JavaScript for the rendered page, run beside the plot; "{plot_id}" in it is the id
            of the plot's element.

    Returns:
        An object to end a cell with.
    """
    from plotly import io as plotly_io

    figure.update_layout(template="plotly_white", paper_bgcolor=CARD, plot_bgcolor=CARD)
    page = plotly_io.to_html(
        figure, include_plotlyjs="_static/plotly.min.js", full_html=False, post_script=script
    )
    return _Bundle(
        {
            **plotly_io.renderers["plotly_mimetype"].to_mimebundle(figure.to_dict()),
            "text/html": page,
        }
    )


class _Bundle:
    """Shown as whichever of its forms the reader's program knows."""

    def __init__(self, forms: dict):
        self.forms = forms

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict:
        return self.forms


def _subplots(*shape, figsize, **options):
    """As pyplot's, but the figure is nobody's current one: shown once, where a cell returns it."""
    figure = Figure(figsize=figsize)
    return figure, figure.subplots(*shape, **options)


def run_curve(record: dict):
    """One run by epoch: training loss, and Recall@1 on the test classes.

    Args:
        record: as `dml.runs.read` returns it.
    """
    history = record["history"]
    tested = [row for row in history if "recall_at_1" in row]
    colour = COLOUR[record["config"]["mix"]]
    figure, (left, right) = _subplots(1, 2, figsize=SIZE["wide"])
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
    figure, axes = _subplots(2, 4, figsize=(SIZE["wide"][0], 4.2), sharex=True)
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
    figure, axes = _subplots(1, len(by_loss), figsize=SIZE["wide"], sharex=True)
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
    figure, axes = _subplots(1, 2, figsize=SIZE["wide"], sharex=True)
    for (name, curves), style in zip(by_form.items(), ("-", "--"), strict=True):
        for axis, curve, kind in zip(axes, curves, ("positive", "negative"), strict=True):
            axis.plot(similarity, curve, style, color=COLOUR[kind], label=name)
            _pull_axes(axis, f"on a {kind}")
            axis.set_xlabel("similarity $s$")
    axes[0].set_ylabel(r"$-\partial\ell / \partial s$")
    axes[1].legend()
    return figure


def pull_by_lambda(similarity, by_form: dict):
    """The pull of a mixed candidate on its anchor, a panel a form of the loss, a curve a lambda.

    Args:
        similarity: (n,).
        by_form: title -> {lambda: pull (n,)}.
    """
    figure, axes = _subplots(1, len(by_form), figsize=SIZE["wide"], sharey=True)
    styles = dict(zip(next(iter(by_form.values())), ("-", "--", ":"), strict=True))
    for axis, (title, curves) in zip(axes, by_form.items(), strict=True):
        axis.axhline(0, color=COLOUR["none"], linewidth=1)
        for lam, pull in curves.items():
            colour = LABELS(0.08 if lam < 0.5 else 0.92) if lam != 0.5 else COLOUR["none"]
            label = rf"$\lambda$ = {lam}"
            axis.plot(similarity, pull, color=colour, linestyle=styles[lam], label=label)
        axis.set(title=title, xlabel="similarity to the anchor")
    axes[0].set_ylabel("pull")
    axes[0].legend()
    return figure


def mixing_pairs(x, labels, metrix, lam: float):
    """The mixed candidates of the first example of a batch in the plane, a panel a kind of pair.

    Args:
        x: unit embeddings, (B, 2).
        labels: (B,).
        metrix: a `dml.mixup.Metrix`, which says who is mixed with whom.
        lam: of the mixing.
    """
    pairs = metrix.loss.compare(x, labels)
    figure, axes = _subplots(2, 2, figsize=(SIZE["wide"][0], 7.0))
    for axis, kind in zip(axes.flat, metrix.pairs, strict=True):
        rows, (family,) = metrix.parents(pairs, (kind,))
        here = family.mask[0] & (rows[0] == 0)
        j = x[family.j[0][here]]
        i = x[:1].expand_as(j) if family.i is None else x[family.i[0][here]]
        v = F.normalize(lam * i + (1 - lam) * j, dim=1)
        y = lam * family.label_i + (1 - lam) * family.label_j
        axis.add_patch(Circle((0, 0), 1, fill=False, color="#c8ccd0"))
        for parent in (i, j):
            axis.plot(*torch.stack([parent, v]).permute(2, 0, 1), color="#9aa0a6", linewidth=0.8)
        for c, marker in zip(labels.unique(), ("o", "s", "^"), strict=True):
            kind_of = "positive" if c == labels[0] else "negative"
            of_class = x[labels == c]
            axis.scatter(*of_class.T, marker=marker, s=60, color=COLOUR[kind_of], zorder=3)
        axis.scatter(*x[0], marker="o", s=160, facecolor="none", edgecolor="black", zorder=4)
        axis.scatter(
            *v.T,
            marker="D",
            s=34,
            c=[y] * len(v),
            cmap=LABELS,
            vmin=0,
            vmax=1,
            zorder=5,
            edgecolor="black",
            linewidth=0.6,
        )
        axis.annotate("anchor", x[0], xytext=(6, 8), textcoords="offset points")
        axis.set(
            title=f"{kind}, label {y:.1f}", xlim=(-1.15, 1.15), ylim=(-0.55, 1.2), aspect="equal"
        )
        axis.axis("off")
    return figure


def class_grid(rows: dict):
    """Images of some classes, a row each.

    Args:
        rows: a class's name -> its images (n, 1 or 3, H, W) uint8; ink on dark is shown inverted,
            as print is read. Longer rows are cut to the shortest.
    """
    columns = min(len(images) for images in rows.values())
    lines = [torch.cat(list(images[:columns]), dim=2) for images in rows.values()]
    width = SIZE["wide"][0]
    figure, axis = _subplots(figsize=(width, width * len(rows) / columns))
    _show(axis, torch.cat(lines, dim=1))
    return figure


def neighbours(queries, found, right, similarity):
    """Queries and their nearest neighbours, each framed by whether it is of the query's class.

    Args:
        queries: (q, C, H, W) uint8.
        found: the neighbours, most similar first, (q, k, C, H, W) uint8.
        right: (q, k) bool.
        similarity: (q, k), written below each.
    """
    frames = [[COLOUR["positive" if is_right else "negative"] for is_right in row] for row in right]
    figure, axes = _neighbour_grid(queries, found, frames, similarity)
    axes[0, 0].set_title("query", fontsize="small")
    return figure


def _neighbour_grid(queries, found, colours, similarity):
    """A row a query: its image, and its neighbours in frames of these colours, (q, k), with the
    similarity below. Returns the figure and its axes."""
    count, k = similarity.shape
    width = SIZE["wide"][0]
    figure, axes = _subplots(
        count, k + 1, figsize=(width, 1.25 * width * count / (k + 1)), squeeze=False
    )
    for row, line in enumerate(axes):
        _show(line[0], queries[row])
        for column, axis in enumerate(line[1:]):
            _show(axis, found[row, column])
            axis.set_axis_on()
            axis.set(xticks=[], yticks=[])
            axis.set_xlabel(f"{similarity[row, column]:.2f}", fontsize="x-small", labelpad=2)
            for spine in axis.spines.values():
                spine.set(visible=True, color=colours[row][column], linewidth=2.5)
    return figure, axes


def recall_curve(x, recall, xlabel: str):
    """Recall@1 against something, one value each.

    Args:
        x, recall: of equal length; recall in [0, 1].
        xlabel: what x is.
    """
    figure, axis = _subplots(figsize=SIZE["small"])
    axis.plot(x, [100 * value for value in recall], color=COLOUR["none"], marker="o")
    axis.set(xlabel=xlabel, ylabel="Recall@1 (%)", ylim=(0, None))
    return figure


def _show(axis, image) -> None:
    """One image (C, H, W) uint8 without axes; grey ones inverted, ink dark on paper."""
    picture = image.permute(1, 2, 0)
    axis.imshow(picture, cmap="gray_r", vmin=0, vmax=255, interpolation="none")
    axis.grid(False)
    axis.set_axis_off()


def learning_curves(history, methods: dict, metric: str = "recall_at_1"):
    """A metric by epoch, a panel a loss, each with its own axis, and a line a method: the mean over
    seeds, and their range as a band.

    Args:
        history: rows of epochs with `loss`, `mix`, `seed`, `epoch` and the metric,
            `dml.runs.history`.
        methods: what each `mix` is called.
        metric: a column of values in [0, 1].
    """
    if not len(history):
        figure, axis = _subplots(figsize=SIZE["medium"])
        axis.text(0.5, 0.5, "no runs yet", ha="center", transform=axis.transAxes)
        return figure
    tested = history.dropna(subset=metric)
    losses = sorted(tested["loss"].unique())
    size = SIZE["medium" if len(losses) == 1 else "wide"]
    figure, axes = _subplots(1, len(losses), figsize=size, squeeze=False)
    for axis, loss in zip(axes[0], losses, strict=True):
        axis.set(xlabel="epoch", title=loss.replace("_", " "))
        axis.xaxis.get_major_locator().set_params(integer=True)
        of_loss = tested[tested["loss"] == loss]
        for mix, label in methods.items():
            rows = of_loss[of_loss["mix"] == mix]
            if not len(rows):
                continue
            curve = 100 * rows.groupby("epoch")[metric].agg(["mean", "min", "max"])
            axis.plot(curve.index, curve["mean"], color=COLOUR[mix], label=label)
            axis.fill_between(curve.index, curve["min"], curve["max"], color=COLOUR[mix], alpha=0.2)
    name = metric.replace("_at_", "@").replace("_", " ").capitalize()
    axes[0, 0].set_ylabel(f"{name} (%)")
    lines = {line.get_label(): line for axis in axes[0] for line in axis.lines}
    lines = {label: lines[label] for label in methods.values() if label in lines}
    figure.legend(lines.values(), lines, loc="outside lower center", ncols=len(lines))
    return figure


def forest(rows, xlabel: str = "points of Recall@1 beside the baseline of the same seed"):
    """What each method adds: the mean difference and its 95 % confidence interval, a line a method.

    Args:
        rows: `dml.runs.gains` with two more columns, `group` (a heading over consecutive rows) and
            `label`, as `dml.runs.named` adds them.
        xlabel: what the differences are.
    """
    if not len(rows):
        figure, axis = _subplots(figsize=SIZE["small"])
        axis.text(0.5, 0.5, "no runs yet", ha="center", transform=axis.transAxes)
        return figure
    labels, heights, y = [], [], 0.0
    for i, row in enumerate(rows.to_dict("records")):
        if i and row["group"] != rows["group"].iloc[i - 1]:
            y += 0.7
        labels.append(row["label"])
        heights.append(y)
        y += 1
    figure, axis = _subplots(figsize=(6.0, 0.9 + 0.24 * y))
    axis.axvline(0, color=COLOUR["none"], linewidth=1)
    colours = [COLOUR[mix] for mix in rows["mix"]]
    half = (rows["high"] - rows["low"]).fillna(0) / 2
    axis.errorbar(rows["mean"], heights, xerr=half, fmt="none", ecolor=colours, elinewidth=1.8)
    axis.scatter(rows["mean"], heights, color=colours, s=28, zorder=3)
    axis.set(xlabel=xlabel, yticks=heights, yticklabels=labels)
    axis.grid(False, axis="y")
    axis.invert_yaxis()
    for first, group in rows["group"].reset_index(drop=True).drop_duplicates().items():
        at = {"xycoords": ("axes fraction", "data"), "va": "center", "color": COLOUR["none"]}
        axis.annotate(group, (1.02, heights[first]), **at)
    return figure


def cost_by_batch(rows, ratio: str):
    """A ratio of costs by batch size, a line a loss, told apart by colour and marker.

    Args:
        rows: with columns `loss`, `batch` and the ratio's.
        ratio: the name of its column.
    """
    figure, axis = _subplots(figsize=SIZE["medium"])
    axis.axhline(1, color=COLOUR["none"], linewidth=1)
    groups = list(rows.groupby("loss", sort=False))
    colours = sns.color_palette("colorblind", len(groups))
    for (name, of), colour, marker in zip(groups, colours, "osD^vP*X"[: len(groups)], strict=True):
        axis.plot(of["batch"], of[ratio], color=colour, marker=marker, label=name.replace("_", " "))
    axis.set(xlabel="batch", ylabel=ratio, xscale="log", ylim=(0, None))
    axis.set_xticks(sorted(rows["batch"].unique()), sorted(rows["batch"].unique()))
    axis.minorticks_off()
    axis.legend(fontsize="small", ncols=2)
    return figure


def positivity_curves(curves, published=None):
    """Share of mixed embeddings that behave as positives, by lambda, a panel a loss.

    Args:
        curves: rows with `loss`, `when`, `lambda`, `measured` and `predicted` (NaN without one).
        published: the paper's curve for multi-similarity, `lambda`, `empirical`, `theoretical`.
    """
    names = list(dict.fromkeys(curves["loss"]))
    figure, axes = _subplots(1, len(names), figsize=(SIZE["wide"][0], 4.0), sharey=True)
    for axis, name in zip(axes, names, strict=True):
        for (when, rows), colour in zip(
            curves[curves["loss"] == name].groupby("when", sort=False),
            (COLOUR["none"], COLOUR["feature"]),
            strict=True,
        ):
            axis.plot(rows["lambda"], rows["measured"], color=colour, label=f"measured, {when}")
            if rows["predicted"].notna().all():
                axis.plot(
                    rows["lambda"], rows["predicted"], ":", color=colour, label=f"formula, {when}"
                )
        if published is not None and name == "multi_similarity":
            for column, style in (("empirical", "o"), ("theoretical", "x")):
                axis.plot(
                    published["lambda"],
                    published[column],
                    style,
                    color=COLOUR["published"],
                    markersize=5,
                    label=f"paper, {column}",
                )
        axis.set(title=name.replace("_", " "), xlabel=r"$\lambda$")
    axes[0].set_ylabel("share that attracts")
    entries = {
        label: line
        for axis in axes
        for line, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=3)
    return figure


def attraction(similarity, positive, threshold: float):
    """How similar mixed embeddings are to their anchors, told apart by what they do.

    Args:
        similarity: s(a, v), (n,).
        positive: which of them attract, (n,) bool.
        threshold: up to which similarity a lone one attracts, drawn as a line; NaN draws none.
    """
    figure, axis = _subplots(figsize=SIZE["medium"])
    axis.hist(
        [similarity[positive].numpy(), similarity[~positive].numpy()],
        bins=40,
        stacked=True,
        color=[COLOUR["positive"], COLOUR["negative"]],
        label=["attracts", "repels"],
    )
    axis.axvline(threshold, color=COLOUR["none"], linestyle="--", label="border of a lone one")
    axis.set(xlabel="similarity of the mixture to its anchor", ylabel="mixtures")
    share = positive.double().mean().item()
    axis.legend(title=f"{100 * share:.0f} % attract")
    return figure


def positivity_explorer(s_ap, s_an, s_pn, beta: float, gamma: float, margin: float):
    """Move lambda, beta, gamma and m, and see which mixed embeddings attract (eq-positivity).

    One page of HTML that works in a static page as in JupyterLab, without a kernel.

    Args:
        s_ap, s_an, s_pn: similarities of anchor, positive and negative of n triples, (n,) each.
        beta, gamma, margin: where the knobs start.
    """
    from IPython.display import HTML

    triples = torch.stack([s_ap, s_an, s_pn], 1).double().numpy().round(4).tolist()
    filled = {
        "ID": "dml-explorer-" + hashlib.sha256(repr(triples).encode()).hexdigest()[:8],
        "DATA": json.dumps(triples),
        "BETA": f"{beta:g}",
        "GAMMA": f"{gamma:g}",
        "MARGIN": f"{margin:g}",
        "ATTRACTS": COLOUR["positive"],
        "REPELS": COLOUR["negative"],
    }
    page = Path(__file__).with_name("explorer.html").read_text()
    return HTML(re.sub(r"\b(" + "|".join(filled) + r")\b", lambda word: filled[word[0]], page))


def label_flow(image, flows: list[dict]):
    """An example, the proxies that it keeps, and how their labels flow back to it.

    Args:
        image: the example, (C, H, W) uint8.
        flows: one for each class in its graph, from top to bottom: `picture` of the class (C, H,
            W), whether it is the example's `own`, `similarity` to each of its kept proxies, (n,),
            their sum `score`, and `probability`.
    """
    edges = sum(len(flow["similarity"]) for flow in flows)
    height = edges + len(flows) - 1  # a gap between two classes
    figure, axis = _subplots(figsize=(SIZE["wide"][0], 0.24 * height + 0.6))
    centre, row = height / 2, height
    _picture(axis, image, 0.0, centre, 3.0)
    for flow in flows:
        colour = COLOUR["positive" if flow["own"] else "negative"]
        rows = [row - n - 0.5 for n in range(len(flow["similarity"]))]
        middle = sum(rows) / len(rows)
        for y, s in zip(rows, flow["similarity"], strict=True):
            width = 0.3 + 3 * abs(float(s))
            axis.plot([0.06, 0.4], [centre, y], color=colour, linewidth=width, alpha=0.5)
            axis.plot([0.4, 0.7], [y, middle], color=colour, linewidth=width, alpha=0.5)
            axis.plot(0.4, y, "o", color=colour, markersize=6)
            axis.annotate(
                f"{s:.2f}", (0.4, y), (8, 0), "data", "offset points", va="center", fontsize=7
            )
        _picture(axis, flow["picture"], 0.735, middle, 0.9 + 0.3 * (len(rows) > 1))
        text = f"Z = {flow['score']:.2f},  P = {flow['probability']:.2f}"
        axis.annotate(text, (0.78, middle), va="center", fontsize=9)
        row -= len(rows) + 1
    for x, text in ((0.0, "example"), (0.4, "kept proxies"), (0.735, "classes")):
        axis.annotate(text, (x, height + 0.6), ha="center", fontsize=9)
    axis.set(xlim=(-0.07, 1.0), ylim=(-0.3, height + 1.2))
    axis.axis("off")
    return figure


def _picture(axis, image, x: float, y: float, zoom: float) -> None:
    """A small image (C, H, W) at a point of the data, ink dark on paper where it is grey."""
    picture = image.permute(1, 2, 0)
    box = OffsetImage(picture, zoom=16 * zoom / len(picture), cmap="gray_r")
    axis.add_artist(AnnotationBbox(box, (x, y), frameon=False))


def proxy_sweeps(ours: dict, published, chance: dict | None = None):
    """Recall@1 by the number of proxies a class and by the part of them that is kept.

    Args:
        ours: "N" and "r" -> rows with the parameter's `value` and `recall_at_1` of each run.
        published: rows with `parameter`, `value` and `R@1` in per cent.
        chance: parameter -> the largest value at which nothing can be learnt.
    """
    figure, axes = _subplots(1, 2, figsize=SIZE["wide"], sharey=True)
    names = {"N": "proxies a class, $N$", "r": "part of the proxies that is kept, $r$"}
    for axis, (parameter, xlabel) in zip(axes, names.items(), strict=True):
        curve = 100 * ours[parameter].groupby("value")["recall_at_1"].agg(["mean", "min", "max"])
        axis.plot(curve.index, curve["mean"], "o-", color=COLOUR["none"], label="here, glyphs")
        axis.fill_between(curve.index, curve["min"], curve["max"], color=COLOUR["none"], alpha=0.2)
        theirs = published[published["parameter"] == parameter]
        axis.plot(
            theirs["value"], theirs["R@1"], "s:", color=COLOUR["published"], label="paper, Cars-196"
        )
        axis.set(xlabel=xlabel, xscale="log")
        if chance and parameter in chance:
            left, right = axis.get_xlim()  # on a log scale nothing begins at 0
            end = chance[parameter]
            axis.axvspan(left, end, color=COLOUR["negative"], alpha=0.15, linewidth=0)
            axis.set_xlim(left, right)
        axis.set_xticks(curve.index, [f"{value:g}" for value in curve.index])
        axis.minorticks_off()
    axes[0].set_ylabel("Recall@1 (%)")
    axes[0].legend()
    return figure


def proxy_map(examples, labels, proxies, proxy_labels):
    """Embeddings and proxies in the plane, a colour a class.

    Args:
        examples, proxies: (n, 2) and (m, 2).
        labels, proxy_labels: their classes, (n,) and (m,).
    """
    figure, axis = _subplots(figsize=(SIZE["medium"][0], 5.0))
    palette = sns.color_palette("husl", int(max(labels)) + 1)
    for points, of, style in ((examples, labels, "o"), (proxies, proxy_labels, "*")):
        axis.scatter(
            *points.T,
            c=[palette[int(c)] for c in of],
            marker=style,
            s=18 if style == "o" else 110,
            edgecolor="none" if style == "o" else "black",
            linewidth=0.7,
            label="example" if style == "o" else "proxy",
            zorder=2 if style == "o" else 3,
        )
    axis.axis("off")
    legend = axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    for handle in legend.legend_handles:
        handle.set_facecolor("#9aa0a6")
    return figure


CLASSIFIERS = {  # of the curves of MbDML's paper
    "mixup": COLOUR["input"],
    "nngk": COLOUR["none"],
    "mbdml1": COLOUR["positive"],
    "mbdml2": COLOUR["embed"],
    "mbdml3": COLOUR["feature"],
}


def accuracy_curves(history):
    """Training and test accuracy by epoch, a line a method: the mean over runs.

    Args:
        history: rows of epochs with `method`, `epoch`, `train_accuracy` and `test_accuracy`,
            `dml.classification.table`.
    """
    figure, axes = _subplots(1, 2, figsize=(SIZE["wide"][0], 4.2), sharey=True)
    for axis, part in zip(axes, ("train", "test"), strict=True):
        for method, colour in CLASSIFIERS.items():
            rows = history[history["method"] == method].dropna(subset=f"{part}_accuracy")
            mean = 100 * rows.groupby("epoch")[f"{part}_accuracy"].mean()
            axis.plot(mean.index, mean, color=colour, label=method)
        axis.set(xlabel="epoch", title=part)
    axes[0].set_ylabel("accuracy (%)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return figure


def class_maps(panels: dict, labels):
    """Points in the plane coloured by class, a panel a space; what has no class is a mixture, small
    and black.

    Args:
        panels: title -> (n, 2), or (n + m, 2) with m mixtures after the n images.
        labels: (n,), the same in every panel.
    """
    width = SIZE["wide"][0]
    figure, axes = _subplots(2, 2, figsize=(width, 0.9 * width))
    for axis, (title, points) in zip(axes.flat, panels.items(), strict=True):
        n = len(labels)
        axis.scatter(*points[n:].T, s=4, color="black", alpha=0.5)
        axis.scatter(*points[:n].T, s=14, c=labels, cmap="tab10", linewidth=0)
        axis.set(title=title, xticks=[], yticks=[])
        axis.grid(False)
    return figure


# -- Maps of embeddings, and what lies between two of them (book/08_space) --


def plane(frames: dict, method: str = "tsne", seed: int = 0) -> dict:
    """Embeddings in the plane, each map started from the one before, so that points move no more
    than they must.

    Args:
        frames: caption -> (n, D), the same n examples in each; normalised here.
        method: "tsne" (scikit-learn's) or "umap" (where umap-learn is installed).
        seed: of what either draws.

    Returns:
        caption -> (n, 2) array.

    Raises:
        ValueError: another method. ImportError: UMAP without umap-learn.
    """
    if method not in ("tsne", "umap"):
        raise ValueError(f"method={method!r} is not one of tsne, umap")
    maps, start = {}, None
    for caption, embeddings in frames.items():
        unit = F.normalize(embeddings.float(), dim=1).cpu().numpy()
        start = maps[caption] = _mapper(method, start, seed, len(unit)).fit_transform(unit)
    return maps


def _mapper(method: str, start, seed: int, n: int):
    """What makes one map of n points, from the map before if there is one."""
    options = {"metric": "cosine", "random_state": seed}
    if method == "tsne":
        from sklearn.manifold import TSNE

        # exaggeration would scatter the map before
        begin = {"init": "pca"} if start is None else {"init": start, "early_exaggeration": 1.0}
        return TSNE(perplexity=min(30.0, (n - 1) / 3), **options | begin)
    try:
        import umap
    except ImportError as error:
        raise ImportError('method="umap" needs umap-learn: pip install umap-learn') from error
    return umap.UMAP(init="spectral" if start is None else start, **options)


def image_map(panels: dict, images):
    """Images at their places in the plane, a panel a map.

    Args:
        panels: title -> (n, 2).
        images: (n, C, H, W) uint8.
    """
    width = SIZE["wide"][0]
    figure, axes = _subplots(1, len(panels), figsize=(width, width / len(panels)), squeeze=False)
    for axis, (title, points) in zip(axes[0], panels.items(), strict=True):
        axis.scatter(*points.T, s=0)  # the pictures do not stretch the axes
        for image, (x, y) in zip(images, points, strict=True):
            _picture(axis, image, x, y, 0.8)
        axis.set_title(title)
        axis.axis("off")
    return figure


def film(frames: dict, labels, classes: list[str], images=None):
    """Points in the plane, a colour and a shape a class; several maps are frames with a slider. It
    works in a rendered page; there the image of a point appears beside the pointer, elsewhere its
    class.

    Args:
        frames: caption of the frame -> (n, 2).
        labels: (n,), as numbers from 0.
        classes: their names.
        images: (n, C, H, W) uint8, for the cards; None shows names alone.
    """
    from plotly import express

    rows = [
        {"x": x, "y": y, "class": classes[c], "frame": frame, "image": i}
        for frame, points in frames.items()
        for i, ((x, y), c) in enumerate(zip(points.tolist(), labels.tolist(), strict=True))
    ]
    moving = {"animation_frame": "frame", "animation_group": "image"} if len(frames) > 1 else {}
    shown = express.scatter(
        rows,
        "x",
        "y",
        color="class",
        symbol="class",
        hover_name="class",
        hover_data={"x": False, "y": False, "class": False, "frame": False, "image": False},
        custom_data=["image"],
        height=520,
        **moving,
    )
    shown.update_layout(showlegend=len(classes) <= 10)
    reach = 1.05 * max(abs(points).max() for points in frames.values())
    for axis in (shown.update_xaxes, shown.update_yaxes):
        axis(range=[-reach, reach], visible=False)
    return interactive(shown, None if images is None else _cards(images))


def _cards(images) -> str:
    """The script that shows a point's image: all images in one picture, as a data URI."""
    count, _, height, width = images.shape
    columns = math.ceil(math.sqrt(count))
    filled = {
        "SPRITE": "data:image/png;base64," + base64.b64encode(_sprite(images, columns)).decode(),
        "COLUMNS": str(columns),
        "WIDTH": str(width),
        "HEIGHT": str(height),
    }
    script = Path(__file__).with_name("cards.js").read_text()
    return re.sub("|".join(filled), lambda found: filled[found[0]], script)


def _sprite(images, columns: int) -> bytes:
    """Images (n, C, H, W) uint8, `columns` in a row, as one PNG; grey ones inverted, ink dark on
    paper."""
    if images.shape[1] == 1:
        images = (255 - images).expand(-1, 3, -1, -1)
    grid = make_grid(images, nrow=columns, padding=0)
    file = io.BytesIO()
    mpl.image.imsave(file, grid.permute(1, 2, 0).numpy(), format="png")
    return file.getvalue()


def similarity_distributions(panels: dict):
    """How similar positives are and how similar negatives, a panel a space.

    Args:
        panels: title -> similarities of the positive pairs and of the negative pairs, (P,), (N,).
    """
    figure, axes = _subplots(1, len(panels), figsize=SIZE["wide"], sharex=True, squeeze=False)
    for axis, (title, pairs) in zip(axes[0], panels.items(), strict=True):
        for kind, similarity in zip(("positive", "negative"), pairs, strict=True):
            axis.hist(
                similarity,
                bins=torch.linspace(-1, 1, 81).tolist(),
                density=True,
                histtype="stepfilled",
                facecolor=(COLOUR[kind], 0.35),
                edgecolor=COLOUR[kind],
                linestyle="-" if kind == "positive" else "--",
                label=f"{kind} pairs",
            )
        axis.set(title=title, xlabel="similarity $s$", xlim=(-1, 1))
    axes[0, 0].set_ylabel("density")
    axes[0, 0].legend(loc="upper left")
    return figure


def mixture_neighbours(mixtures, lams, found, whose, similarity):
    """A mixed example on its way from one parent to the other, and what lies near it: blue frames
    are of the first parent's class, orange of the second's, grey of neither.

    Args:
        mixtures: the mixed images, a row each, (q, C, H, W) uint8.
        lams: share of the first parent in each, (q,).
        found: the nearest images, most similar first, (q, k, C, H, W) uint8.
        whose: 0 and 1 for the first and the second parent's class, -1 for neither, (q, k).
        similarity: (q, k), written below each.
    """
    colours = {0: COLOUR["positive"], 1: COLOUR["negative"], -1: "#c4c7ca"}
    frames = [[colours[int(of)] for of in row] for row in whose]
    figure, axes = _neighbour_grid(mixtures, found, frames, similarity)
    for axis, lam in zip(axes[:, 0], lams, strict=True):
        axis.set_title(rf"$\lambda$ = {float(lam):g}", fontsize="small")
    return figure
