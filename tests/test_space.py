"""Measures of a set of embeddings: equal to double loops, at their known values, in any blocks."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from dml import analysis

N, M, D = 23, 17, 5


def drawn(n=N, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(5, (n,), generator=generator)
    return 3 * torch.randn(n, D, generator=generator), labels * 7  # neither unit nor contiguous


def unit(x):
    return [row / row.norm() for row in x.double()]


def pairs_within(labels):
    return [
        (i, j) for i, j in itertools.permutations(range(len(labels)), 2) if labels[i] == labels[j]
    ]


def test_alignment_equals_a_double_loop():
    x, labels = drawn()
    u, pairs = unit(x), pairs_within(labels)
    expected = sum((u[i] - u[j]).square().sum() for i, j in pairs) / len(pairs)
    assert analysis.alignment(x, labels) == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.parametrize("block", [1, 50, 1 << 22])
def test_uniformity_equals_a_double_loop(block):
    x, _ = drawn()
    u = unit(x)
    terms = [
        math.exp(-2 * (u[i] - u[j]).square().sum()) for i, j in itertools.permutations(range(N), 2)
    ]
    expected = math.log(sum(terms) / len(terms))
    assert analysis.uniformity(x, block) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("block", [1, 50, 1 << 22])
def test_utilization_equals_a_double_loop(block):
    (x, _), (y, _) = drawn(), drawn(M, seed=1)
    expected = sum(min((a - b).square().sum().item() for b in unit(y)) for a in unit(x)) / N
    assert analysis.utilization(x, y, block) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("block", [1, 50, 1 << 22])
def test_the_ratio_within_and_between_classes_equals_a_double_loop(block):
    x, labels = drawn()
    u, pairs = unit(x), pairs_within(labels)
    within = sum((u[i] - u[j]).norm() for i, j in pairs) / len(pairs)
    means = [
        sum(a for a, y in zip(u, labels, strict=True) if y == c) / (labels == c).sum()
        for c in labels.unique()
    ]
    between = [(a - b).norm() for a, b in itertools.permutations(means, 2)]
    expected = within / (sum(between) / len(between))
    assert analysis.intra_inter_ratio(x, labels, block) == pytest.approx(expected.item(), rel=1e-6)


def test_spectral_decay_is_the_divergence_of_uniform_from_the_singular_values():
    x, _ = drawn()
    s = torch.linalg.svdvals(F.normalize(x.double(), dim=1))
    s = s / s.sum()
    expected = sum(1 / D * math.log(1 / D / p) for p in s.tolist())
    assert analysis.spectral_decay(x) == pytest.approx(expected, rel=1e-9)


def test_known_values():
    corners = torch.eye(4).repeat(3, 1)  # four classes, each at one point, at right angles
    labels = torch.arange(4).repeat(3)
    assert analysis.alignment(corners, labels) == pytest.approx(0, abs=1e-12)
    assert analysis.intra_inter_ratio(corners, labels) == pytest.approx(0, abs=1e-7)
    assert analysis.spectral_decay(corners) == pytest.approx(0, abs=1e-12)
    assert analysis.utilization(corners, corners) == pytest.approx(0, abs=1e-6)
    assert analysis.uniformity(torch.eye(4)) == pytest.approx(-4)  # all at distance sqrt 2
    assert analysis.utilization(corners, -corners[:4]) == pytest.approx(2)


def test_bad_input_is_named():
    x, labels = drawn()
    with pytest.raises(ValueError, match="23 embeddings but 4 labels"):
        analysis.alignment(x, labels[:4])
    with pytest.raises(ValueError, match="no pair within a class"):
        analysis.alignment(x, torch.arange(N))
    with pytest.raises(ValueError, match="two classes"):
        analysis.intra_inter_ratio(x, torch.zeros(N))
