"""Laws of the retrieval measures: perfect and collapsed models, a double loop, another library."""

import itertools
import math

import numpy as np
import pytest
import torch
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score

from dml.evaluate import retrieval

K = (1, 2, 5, 10)
BOTH = pytest.mark.parametrize("at_r", [True, False])


def clusters(n=120, classes=25, dimensions=6, noise=1.0, seed=0, dtype=torch.float32):
    """Overlapping classes, some of one image; labels neither sorted nor from 0."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (n,), generator=generator)
    labels[:3] = torch.arange(classes, classes + 3)
    centres = torch.randn(classes + 3, dimensions, generator=generator, dtype=dtype)
    noise = noise * torch.randn(n, dimensions, generator=generator, dtype=dtype)
    return centres[labels] + noise, 7 * labels + 40


def lattice(n=150, seed=1):
    """Whole coordinates in a plane: many embeddings are equal, many more similarities are."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.randint(-2, 3, (n, 2), generator=generator).float()
    points[:, 0] += 3  # none at the origin
    return points, torch.randint(0, 20, (n,), generator=generator)


def unit(embeddings):
    embeddings = embeddings if embeddings.dtype == torch.float64 else embeddings.float()
    return (embeddings / embeddings.norm(dim=1, keepdim=True)).double()


def by_loops(query, query_labels, gallery=None, gallery_labels=None, k=K):
    """Sort every query's candidates, the negative first where two are equal, and walk the list."""
    alone = gallery is None
    gallery, gallery_labels = (query, query_labels) if alone else (gallery, gallery_labels)
    q, g = unit(query), unit(gallery)
    found = {name: [] for name in [*k, "r_precision", "mean_average_precision_at_r"]}
    left_out = 0
    for i, label in enumerate(query_labels.tolist()):
        candidates = [
            (-round(math.fsum((q[i] * g[j]).tolist()), 12), other == label)
            for j, other in enumerate(gallery_labels.tolist())
            if not (alone and i == j)
        ]
        hits = [hit for _, hit in sorted(candidates)]  # False, the negative, sorts before True
        relevant = sum(hits)
        if relevant == 0:
            left_out += 1
            continue
        for value in k:
            found[value].append(any(hits[:value]))
        top = hits[:relevant]
        found["r_precision"].append(sum(top) / relevant)
        precisions = [sum(top[: r + 1]) / (r + 1) for r in range(relevant) if top[r]]
        found["mean_average_precision_at_r"].append(sum(precisions) / relevant)
    result = {f"recall_at_{n}" if n in k else n: np.mean(v) for n, v in found.items()}
    counts = {"queries": len(found[k[0]]), "queries_left_out": left_out}
    return result | {"precision_at_1": result["recall_at_1"]} | counts


def assert_equal(ours, expected, at_r=True, tolerance=1e-12):
    names = {name for name in expected if at_r or not name.startswith(("r_", "mean"))}
    assert ours.keys() == names
    for name in names:
        assert ours[name] == pytest.approx(expected[name], abs=tolerance), name


# -- the models whose result is known


@BOTH
def test_a_perfect_model_has_everything_one(at_r):
    labels = torch.arange(6).repeat(5)
    result = retrieval(torch.eye(6)[labels], labels, k=K, at_r=at_r)
    assert result.pop("queries") == 30
    assert result.pop("queries_left_out") == 0
    assert set(result.values()) == {1.0}


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_collapsed_model_finds_nothing(at_r, dtype):
    labels = torch.arange(40) % 8
    constant = torch.rand(1, 33, dtype=dtype, generator=torch.Generator().manual_seed(0))
    for arguments in ({}, {"gallery": constant.repeat(16, 1), "gallery_labels": labels[:16]}):
        result = retrieval(constant.repeat(40, 1), labels, k=(1, 10, 14), at_r=at_r, **arguments)
        assert all(value == 0 for name, value in result.items() if not name.startswith("queries"))


@BOTH
def test_an_almost_collapsed_model_is_at_chance(at_r):
    generator = torch.Generator().manual_seed(0)
    embeddings = 1 + 1e-5 * torch.randn(1000, 8, generator=generator)
    labels = torch.arange(1000) % 10
    assert 0.05 < retrieval(embeddings, labels, at_r=at_r)["recall_at_1"] < 0.15


def test_a_negative_as_similar_as_the_positive_comes_first():
    embeddings = torch.tensor([[1.0, 0.0], [3.0, 4.0], [3.0, -4.0]])
    labels = torch.tensor([0, 0, 1])  # of the first: its positive and a negative, both at 0.6
    result = retrieval(embeddings, labels, k=(1, 2))
    assert result["recall_at_1"] == 0.5  # only the second query's positive is strictly first
    assert result["recall_at_2"] == 1.0


# -- the double loop


@BOTH
@pytest.mark.parametrize("make", [clusters, lattice])
def test_equals_a_double_loop(make, at_r):
    embeddings, labels = make()
    assert_equal(retrieval(embeddings, labels, k=K, at_r=at_r), by_loops(embeddings, labels), at_r)


@BOTH
@pytest.mark.parametrize("make", [clusters, lattice])
def test_query_against_gallery_equals_a_double_loop(make, at_r):
    (query, query_labels), (gallery, gallery_labels) = make(n=60, seed=3), make(n=90, seed=4)
    gallery_labels = torch.where(gallery_labels == gallery_labels[5], -1, gallery_labels)
    ours = retrieval(
        query, query_labels, gallery=gallery, gallery_labels=gallery_labels, k=K, at_r=at_r
    )
    expected = by_loops(query, query_labels, gallery, gallery_labels)
    assert expected["queries_left_out"] > 0
    assert_equal(ours, expected, at_r)


@BOTH
def test_near_ties_are_decided_as_in_float64(at_r):
    """Similarities that differ by less than a float32 product can tell apart."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(12, 200, generator=generator).repeat_interleave(10, dim=0)
    embeddings = base + 3e-7 * torch.randn(120, 200, generator=generator)
    labels = torch.randint(0, 4, (120,), generator=generator)
    assert_equal(retrieval(embeddings, labels, k=K, at_r=at_r), by_loops(embeddings, labels), at_r)


def test_gallery_equal_to_queries_finds_every_query_itself():
    embeddings, labels = clusters()
    result = retrieval(embeddings, labels, gallery=embeddings, gallery_labels=labels)
    assert result["recall_at_1"] == 1.0
    assert result["queries_left_out"] == 0


# -- the library


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gallery", [False, True])
def test_equals_pytorch_metric_learning(dtype, gallery):
    query, query_labels = clusters(n=400, classes=60, dimensions=16, dtype=dtype)
    names = ("precision_at_1", "r_precision", "mean_average_precision_at_r")
    calculator = AccuracyCalculator(include=names, knn_func=CustomKNN(CosineSimilarity()))
    if gallery:
        reference, labels = clusters(n=500, classes=60, dimensions=16, seed=2, dtype=dtype)
        theirs = calculator.get_accuracy(query, query_labels, reference, labels)
        ours = retrieval(query, query_labels, gallery=reference, gallery_labels=labels)
    else:
        theirs = calculator.get_accuracy(query, query_labels)
        ours = retrieval(query, query_labels)
    for name in names:
        assert ours[name] == pytest.approx(theirs[name], abs=1e-9)


def test_nmi_and_ami_are_scikit_learns_of_kmeans():
    embeddings, labels = clusters(dtype=torch.float64)
    result = retrieval(embeddings, labels, clustering=True, seed=3)
    order = labels.argsort(stable=True)
    labels, points = labels[order].numpy(), unit(embeddings)[order].numpy()
    found = KMeans(len(set(labels)), n_init=1, random_state=3).fit_predict(points)
    assert result["nmi"] == pytest.approx(normalized_mutual_info_score(labels, found))
    assert result["ami"] == pytest.approx(adjusted_mutual_info_score(labels, found))


# -- what must not matter


@BOTH
@pytest.mark.parametrize("make", [clusters, lattice])
def test_the_block_size_changes_nothing(make, at_r):
    embeddings, labels = make()
    expected = retrieval(embeddings, labels, k=K, at_r=at_r)
    for block in (1, 17, 300, 5_000):
        assert_equal(retrieval(embeddings, labels, k=K, at_r=at_r, block=block), expected, at_r)


@BOTH
def test_neither_order_nor_length_nor_label_names_change_anything(at_r):
    embeddings, labels = lattice()
    expected = retrieval(embeddings, labels, k=K, at_r=at_r)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(5))
    lengths = 2.0 ** torch.arange(-3, 3).repeat(25)[:, None]  # powers of two are exact
    ours = retrieval((lengths * embeddings)[order], 100 - labels[order], k=K, at_r=at_r)
    assert_equal(ours, expected, at_r)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    embeddings, labels = clusters()
    embeddings = embeddings.to(dtype)
    assert_equal(retrieval(embeddings, labels, k=K), by_loops(embeddings, labels))


def test_lower_precision_allowed_elsewhere_is_neither_used_nor_changed():
    embeddings, labels = clusters(dimensions=64)
    expected = by_loops(embeddings, labels)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", torch.bfloat16):
            result = retrieval(embeddings, labels, k=K)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert_equal(result, expected)


def test_arguments_are_left_as_they_were_and_need_no_gradient():
    embeddings, labels = clusters()
    embeddings.requires_grad_()
    copies = embeddings.detach().clone(), labels.clone()
    retrieval(embeddings, labels)
    assert torch.equal(embeddings, copies[0])
    assert torch.equal(labels, copies[1])


@BOTH
def test_recall_rises_with_k_and_no_rank_is_missed(at_r):
    embeddings, labels = clusters(n=40)
    result = retrieval(embeddings, labels, k=range(1, 40), at_r=at_r)
    recalls = [result[f"recall_at_{k}"] for k in range(1, 40)]
    assert all(a <= b for a, b in itertools.pairwise(recalls))
    assert recalls[-1] == 1.0


# -- counts


def test_queries_without_relevant_candidates_are_left_out_and_counted():
    embeddings = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.01], [0.0, 1.0]])
    result = retrieval(embeddings, torch.tensor([0, 0, 1, 2]), k=(1, 2))
    assert (result["queries"], result["queries_left_out"]) == (2, 2)
    assert result["recall_at_1"] == 0.0  # the one of class 1 is a candidate still, and in the way
    assert result["recall_at_2"] == 1.0


def test_all_values_are_plain_numbers():
    result = retrieval(*clusters(), clustering=True)
    assert {type(value) for value in result.values()} == {float, int}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@BOTH
def test_a_gpu_gives_the_same(at_r):
    embeddings, labels = clusters(n=3000, classes=400, dimensions=64)
    expected = retrieval(embeddings, labels, k=K, at_r=at_r)
    ours = retrieval(embeddings.cuda(), labels.cuda(), k=K, at_r=at_r, block=2**20)
    assert_equal(ours, expected, at_r)


# -- bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda x, y: (x, y[:-1]), r"labels must be \(120,\) integers.*\(119,\)"),
        (lambda x, y: (x, y.float()), "integers"),
        (lambda x, y: (x[:, 0], y), r"\(examples, dimensions\).*\(120,\)"),
        (lambda x, y: (x[:0], y[:0]), "shape"),
        (lambda x, y: (x.long(), y), "floating point"),
        (lambda x, y: (x, torch.arange(len(y))), "none of the 120 queries"),
    ],
)
def test_bad_embeddings_or_labels_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        retrieval(*arguments(*clusters()))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_first_row_that_is_not_finite_is_named(value):
    embeddings, labels = clusters()
    embeddings[[17, 30], 2] = value
    with pytest.raises(ValueError, match="2 of 120 rows; the first is row 17"):
        retrieval(embeddings, labels)
    with pytest.raises(ValueError, match=r"gallery embeddings .* row 17"):
        retrieval(*clusters(), gallery=embeddings, gallery_labels=labels)


@pytest.mark.parametrize("k", [0, -1, 120])
def test_a_k_outside_the_number_of_candidates_is_refused(k):
    with pytest.raises(ValueError, match=f"k={k} must be from 1 .* 119"):
        retrieval(*clusters(), k=(1, k))


def test_gallery_and_its_labels_come_together_and_fit():
    embeddings, labels = clusters()
    with pytest.raises(ValueError, match="gallery without gallery_labels"):
        retrieval(embeddings, labels, gallery=embeddings)
    with pytest.raises(ValueError, match="gallery_labels without gallery"):
        retrieval(embeddings, labels, gallery_labels=labels)
    with pytest.raises(ValueError, match=r"gallery_labels must be \(120,\)"):
        retrieval(embeddings, labels, gallery=embeddings, gallery_labels=labels[:5])
    with pytest.raises(ValueError, match="6 dimensions, the gallery has 5"):
        retrieval(embeddings, labels, gallery=embeddings[:, :5], gallery_labels=labels)
