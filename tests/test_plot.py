"""Figures show what they are given: every image at its place, every pair in its distribution."""

import base64
import importlib.util
import io
import re

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.offsetbox import AnnotationBbox

from dml import plot

N, D = 20, 8


def images(channels=1, height=6, width=5):
    generator = torch.Generator().manual_seed(0)
    shape = (N, channels, height, width)
    return torch.randint(256, shape, generator=generator, dtype=torch.uint8)


def embeddings(seed=0):
    return torch.randn(N, D, generator=torch.Generator().manual_seed(seed))


def points(seed=0):
    return embeddings(seed)[:, :2].numpy()


def test_a_map_is_the_same_for_the_same_seed_and_has_a_point_an_example():
    one, two = (plot.plane({"a": embeddings(), "b": embeddings(1)}) for _ in range(2))
    assert one.keys() == {"a", "b"}
    for caption in one:
        assert one[caption].shape == (N, 2) and np.isfinite(one[caption]).all()
        assert np.array_equal(one[caption], two[caption])


def test_a_map_starts_from_the_one_before():
    """So that equal spaces stay where they are."""
    maps = plot.plane({"before": embeddings(), "after": embeddings(), "other": embeddings(1)})
    close, far = (
        np.corrcoef(maps["before"].ravel(), maps[caption].ravel())[0, 1]
        for caption in ("after", "other")
    )
    assert close > 0.9 and close > far


def test_an_unknown_map_and_a_missing_package_are_named():
    with pytest.raises(ValueError, match="tsne, umap"):
        plot.plane({"a": embeddings()}, "pca")
    if importlib.util.find_spec("umap") is None:
        with pytest.raises(ImportError, match="pip install umap-learn"):
            plot.plane({"a": embeddings()}, "umap")


def test_an_image_map_puts_every_image_at_its_point():
    figure = plot.image_map({"before": points(), "after": points(1)}, images())
    assert [axis.get_title() for axis in figure.axes] == ["before", "after"]
    for axis, expected in zip(figure.axes, (points(), points(1)), strict=True):
        placed = [a.xy for a in axis.artists + axis.texts if isinstance(a, AnnotationBbox)]
        np.testing.assert_allclose(placed, expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_card_of_a_point_has_the_pixels_of_its_image(channels):
    given = images(channels)
    page = shown(plot.film({"only": points()}, torch.arange(N) % 3, ["a", "b", "c"], given))
    uri = re.search(r"data:image/png;base64,([A-Za-z0-9+/=]+)", page)[1]
    sprite = mpl.image.imread(io.BytesIO(base64.b64decode(uri)))[:, :, :3]
    columns = round(sprite.shape[1] / 5)
    for n, image in enumerate(given):
        row, column = divmod(n, columns)
        cell = sprite[6 * row : 6 * row + 6, 5 * column : 5 * column + 5]
        pixels = image.permute(1, 2, 0).float() / 255
        expected = 1 - pixels.expand(-1, -1, 3) if channels == 1 else pixels
        np.testing.assert_allclose(cell, expected, atol=1e-6)
    assert not re.search(r"\b(SPRITE|COLUMNS|WIDTH|HEIGHT)\b|{plot_id}", page)


def shown(figure):
    return figure._repr_mimebundle_()["text/html"]


def test_a_film_has_a_frame_an_epoch_and_a_single_map_has_no_slider():
    labels, classes = torch.arange(N) % 3, ["a", "b", "c"]
    film = plot.film({"epoch 0": points(), "epoch 1": points(1)}, labels, classes)
    data = film._repr_mimebundle_()["application/vnd.plotly.v1+json"]
    assert [frame["name"] for frame in data["frames"]] == ["epoch 0", "epoch 1"]
    assert len(data["layout"]["sliders"]) == 1
    still = plot.film({"only": points()}, labels, classes)._repr_mimebundle_()
    assert "sliders" not in still["application/vnd.plotly.v1+json"]["layout"]


def decoded(values):
    """plotly writes long lists of numbers as bytes."""
    if isinstance(values, dict):
        return np.frombuffer(base64.b64decode(values["bdata"]), dtype=values["dtype"])
    return values


def test_every_point_of_a_film_knows_its_image():
    labels = torch.arange(N) % 3
    data = plot.film({"only": points()}, labels, ["a", "b", "c"])._repr_mimebundle_()
    seen = {}
    for trace in data["application/vnd.plotly.v1+json"]["data"]:
        numbers = [of_point[0] for of_point in trace["customdata"]]
        for n, x, y in zip(numbers, decoded(trace["x"]), decoded(trace["y"]), strict=True):
            seen[n] = (x, y)
            assert trace["name"] == "abc"[labels[n]]
    np.testing.assert_allclose([seen[n] for n in range(N)], points())


def test_distributions_of_pairs_are_densities_of_each_kind():
    s = torch.linspace(-0.9, 0.9, 100)
    figure = plot.similarity_distributions({"before": (s, -s), "after": (s.clamp(min=0.5), s)})
    assert [axis.get_title() for axis in figure.axes] == ["before", "after"]
    for axis in figure.axes:
        assert len(axis.patches) == 2
        for patch in axis.patches:
            x, y = patch.get_xy().T
            assert abs(np.trapezoid(y, x)) == pytest.approx(1, abs=1e-6)


def test_neighbours_of_a_mixture_are_framed_by_whose_class_they_are():
    whose = torch.tensor([[0, 0, -1], [1, 0, 1]])
    found = images()[:6].view(2, 3, 1, 6, 5)
    figure = plot.mixture_neighbours(images()[:2], [0.75, 0.25], found, whose, torch.rand(2, 3))
    rows = np.array(figure.axes).reshape(2, 4)
    colours = {0: plot.COLOUR["positive"], 1: plot.COLOUR["negative"], -1: "#c4c7ca"}
    for row, line in enumerate(rows):
        assert f"{[0.75, 0.25][row]:g}" in line[0].get_title()
        for column, axis in enumerate(line[1:]):
            edge = mpl.colors.to_hex(axis.spines["left"].get_edgecolor())
            assert edge == colours[whose[row, column].item()]


def test_a_comparison_without_runs_says_so():
    rows = pd.DataFrame(columns=["mix", "seeds", "mean", "std", "low", "high", "group", "label"])
    (axis,) = plot.forest(rows).axes
    assert axis.texts[0].get_text() == "no runs yet"


def test_every_loss_has_a_panel_with_the_curves_of_its_own_runs():
    rows = [
        {"loss": loss, "mix": mix, "seed": seed, "epoch": epoch, "recall_at_1": value + 0.1 * seed}
        for (loss, mix), value in {
            ("contrastive", "none"): 0.2,
            ("nca", "none"): 0.4,
            ("nca", "embed"): 0.6,
        }.items()
        for seed in (0, 1)
        for epoch in (1, 2)
    ]
    figure = plot.learning_curves(pd.DataFrame(rows), {"none": "baseline", "embed": "mixed"})
    drawn = {
        axis.get_title(): {line.get_label(): line.get_ydata() for line in axis.lines}
        for axis in figure.axes
    }
    assert {title: list(lines) for title, lines in drawn.items()} == {
        "contrastive": ["baseline"],
        "nca": ["baseline", "mixed"],
    }
    np.testing.assert_allclose(drawn["contrastive"]["baseline"], [25, 25])
    np.testing.assert_allclose(drawn["nca"]["mixed"], [65, 65])
