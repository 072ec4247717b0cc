"""Laws of the generic loss: the formula by double loop, pytorch-metric-learning's values, and what
must stay finite."""

import pytest
import torch
from pytorch_metric_learning import distances, miners
from pytorch_metric_learning import losses as library
from pytorch_metric_learning.reducers import MeanReducer

from dml import losses
from tests import reference

D, C = 8, 4
OPTIONS = {
    "contrastive": {"margin": 0.3},
    "lifted_structure": {"margin": 0.4},
    "binomial_deviance": {"beta": 2.0, "gamma": 40.0, "margin": 0.5},
    "multi_similarity": {"beta": 18.0, "gamma": 75.0, "margin": 0.77},
    "proxy_anchor": {"beta": 32.0, "margin": 0.1},
    "nca": {"temperature": 0.5},
    "proxy_nca": {"temperature": 1.0},
    "proxy_nca_pp": {"temperature": 0.2},
}
NAMES = list(losses.LOSSES)
COSINE = distances.CosineSimilarity()


def make(name, dtype=torch.float64, **more):
    torch.manual_seed(1)
    return losses.build(name, C, D, **{**OPTIONS[name], **more}).to(dtype)


def batch(labels=(0, 0, 1, 1, 1, 2, 3, 0, 2), dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(len(labels), D, generator=generator, dtype=dtype)
    return embeddings.requires_grad_(), torch.tensor(labels)


def value_and_gradients(value, embeddings, loss):
    inputs = [embeddings, *loss.parameters()]
    return [value, *torch.autograd.grad(value, inputs, allow_unused=True, retain_graph=True)]


def assert_same(ours, theirs, tolerance=1e-9):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b.to(a.dtype), rtol=tolerance, atol=tolerance)


# -- the formula


SOFTMAX = [
    (name, {"denominator": d}) for name in NAMES if "nca" in name for d in ("negatives", "all")
]


@pytest.mark.parametrize(("name", "more"), [(name, {}) for name in NAMES] + SOFTMAX)
def test_equals_a_double_loop_over_anchors_and_candidates(name, more):
    loss, (embeddings, labels) = make(name, **more), batch()
    expected = reference.clean(loss, reference.table(name, **OPTIONS[name]), embeddings, labels)
    assert_same(
        value_and_gradients(loss(embeddings, labels), embeddings, loss),
        value_and_gradients(expected, embeddings, loss),
    )


def test_a_loss_of_ones_own_is_one_statement_and_equals_the_built_in():
    own = losses.GenericLoss(
        rho_pos=lambda s: torch.exp(-18 * (s - 0.77)),
        rho_neg=lambda s: torch.exp(75 * (s - 0.77)),
        sigma_pos=lambda x: torch.log(1 + x) / 18,
        sigma_neg=lambda x: torch.log(1 + x) / 75,
    )
    embeddings, labels = batch()
    torch.testing.assert_close(
        own(embeddings, labels), losses.multi_similarity()(embeddings, labels)
    )


def test_per_anchor_takes_labels_between_zero_and_one():
    loss = losses.multi_similarity()
    similarity = torch.tensor([[0.2, 0.9]], dtype=torch.float64)
    label, mask = torch.tensor([[0.3, 0.6]]).double(), torch.ones(1, 2, dtype=torch.bool)
    row = reference.table("multi_similarity", beta=18.0, gamma=75.0, margin=0.77)
    expected, _, _ = reference.anchor_loss(row, list(zip(label[0], similarity[0], strict=True)))
    torch.testing.assert_close(loss.per_anchor(similarity, label, mask)[0], expected)


def test_the_distance_form_is_contrastive_on_euclidean_distances():
    embeddings, labels = batch()
    ours = losses.contrastive(0.5, distance=True, reduction="nonzero_pairs")
    theirs = library.ContrastiveLoss(pos_margin=0, neg_margin=0.5)
    assert_same(
        value_and_gradients(ours(embeddings, labels), embeddings, ours),
        value_and_gradients(theirs(embeddings, labels), embeddings, theirs),
        1e-7,
    )


# -- pytorch-metric-learning


def library_pairs():
    """name -> our loss, theirs, and by how much the values differ by definition."""
    ms, pa, nca = (
        OPTIONS["multi_similarity"],
        OPTIONS["proxy_anchor"],
        OPTIONS["nca"]["temperature"],
    )
    lifted = OPTIONS["lifted_structure"]["margin"]
    pairs = {
        # theirs has [1 - s]+ for positives where the table has -s
        "contrastive": (
            make("contrastive", reduction="nonzero_pairs"),
            library.ContrastiveLoss(1, OPTIONS["contrastive"]["margin"], distance=COSINE),
            1.0,
        ),
        "lifted_structure": (
            make("lifted_structure"),
            library.GeneralizedLiftedStructureLoss(
                neg_margin=lifted, pos_margin=0, distance=COSINE
            ),
            0.0,
        ),
        "multi_similarity": (
            make("multi_similarity"),
            library.MultiSimilarityLoss(ms["beta"], ms["gamma"], ms["margin"], distance=COSINE),
            0.0,
        ),
        "proxy_anchor": (
            make("proxy_anchor"),
            library.ProxyAnchorLoss(C, D, pa["margin"], pa["beta"]),
            0.0,
        ),
        "nca": (make("nca", denominator="all"), library.NCALoss(1 / nca, distance=COSINE), 0.0),
        "proxy_nca": (
            make("proxy_nca", denominator="all"),
            library.ProxyNCALoss(C, D, softmax_scale=1.0, distance=COSINE),
            0.0,
        ),
        "proxy_nca_pp": (
            make("proxy_nca_pp"),
            library.ProxyNCALoss(C, D, softmax_scale=5.0, distance=COSINE),
            0.0,
        ),
    }
    for ours, theirs, _ in pairs.values():
        if hasattr(ours, "proxies"):
            theirs.proxies.data = ours.proxies.data.clone()
    return pairs


LIBRARY = [
    "contrastive",
    "lifted_structure",
    "multi_similarity",
    "proxy_anchor",
    "nca",
    "proxy_nca",
    "proxy_nca_pp",
]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", LIBRARY)
def test_value_and_gradient_equal_the_librarys(name, seed):
    ours, theirs, less = library_pairs()[name]
    embeddings, labels = batch(seed=seed)
    expected = value_and_gradients(theirs(embeddings, labels), embeddings, theirs)
    expected[0] = expected[0] - less
    assert_same(value_and_gradients(ours(embeddings, labels), embeddings, ours), expected, 1e-6)


@pytest.mark.parametrize(
    "miner",
    [
        miners.MultiSimilarityMiner(0.1),
        miners.PairMarginMiner(0.2, 0.6, distance=COSINE),
        miners.BatchHardMiner(),
    ],
    ids=lambda miner: type(miner).__name__,
)
@pytest.mark.parametrize("name", ["contrastive", "lifted_structure", "multi_similarity"])
def test_a_miners_pairs_are_compared_as_in_the_library(name, miner):
    ours, theirs, less = library_pairs()[name]
    embeddings, labels = batch()
    mined = miner(embeddings, labels)
    if name == "contrastive" and len(mined) == 3:
        mined = (mined[0].unique(), mined[1][: len(mined[0].unique())], mined[0][:0], mined[2][:0])
    expected = theirs(embeddings, labels, mined) - (less if len(mined[0]) else 0.0)
    torch.testing.assert_close(ours(embeddings, labels, mined), expected)


@pytest.mark.parametrize("name", ["contrastive", "lifted_structure", "multi_similarity", "nca"])
def test_reference_embeddings_are_candidates_as_in_the_library(name):
    ours, theirs, less = library_pairs()[name]
    embeddings, labels = batch()
    ref_emb, ref_labels = batch((0, 1, 2, 3, 3, 0), seed=5)
    expected = theirs(embeddings, labels, ref_emb=ref_emb, ref_labels=ref_labels) - less
    torch.testing.assert_close(
        ours(embeddings, labels, ref_emb=ref_emb, ref_labels=ref_labels), expected
    )


def test_the_librarys_memory_takes_our_loss():
    ours, theirs, _ = library_pairs()["multi_similarity"]
    memories = [library.CrossBatchMemory(loss, D, memory_size=12) for loss in (ours, theirs)]
    for seed in range(4):  # long enough for the memory to wrap around
        embeddings, labels = batch(seed=seed)
        values = [memory(embeddings, labels) for memory in memories]
        torch.testing.assert_close(values[0], values[1])


# -- finite, always

DEGENERATE = {
    "no positives": (0, 1, 2, 3),
    "one class": (2, 2, 2),
    "one example": (1,),
    "some anchors without a positive": (0, 0, 1, 2),
}


@pytest.mark.parametrize("labels", DEGENERATE.values(), ids=DEGENERATE)
@pytest.mark.parametrize("name", NAMES)
def test_a_degenerate_batch_has_a_finite_loss_and_gradient(name, labels):
    loss, (embeddings, labels) = make(name), batch(labels)
    for tensor in value_and_gradients(loss(embeddings, labels), embeddings, loss):
        assert tensor is not None and tensor.isfinite().all()


@pytest.mark.parametrize("name", ["nca", "contrastive", "multi_similarity"])
def test_a_single_example_has_loss_zero(name):
    loss, (embeddings, labels) = make(name), batch((1,))
    assert loss(embeddings, labels) == 0


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str
)
@pytest.mark.parametrize("name", NAMES)
def test_similarities_of_one_and_minus_one_stay_finite_at_scales_of_100(name, dtype):
    scales = {"beta": 100.0, "gamma": 100.0, "temperature": 0.01}
    loss = make(
        name, torch.float32, **{key: scales[key] for key in OPTIONS[name].keys() & scales.keys()}
    )
    x = torch.nn.functional.one_hot(torch.tensor([0, 0, 0, 1]), D).to(dtype)
    embeddings = (x * torch.tensor([1, 1, -1, 1], dtype=dtype)[:, None]).requires_grad_()
    labels = torch.tensor([0, 1, 0, 1])
    for tensor in value_and_gradients(loss(embeddings, labels), embeddings, loss):
        assert tensor.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_autocast_changes_nothing_of_the_loss(name, dtype):
    loss, (embeddings, labels) = make(name, torch.float32), batch(dtype=torch.float32)
    with torch.autocast("cpu", dtype):
        under = loss(embeddings, labels)
    assert under.dtype == torch.float32
    torch.testing.assert_close(under, loss(embeddings, labels), rtol=0, atol=0)


def test_the_order_of_the_batch_does_not_matter():
    for name in NAMES:
        loss, (embeddings, labels) = make(name), batch()
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(3))
        torch.testing.assert_close(loss(embeddings[order], labels[order]), loss(embeddings, labels))


# -- bad input


def test_bad_input_is_refused_by_name():
    loss, (embeddings, labels) = make("multi_similarity"), batch()
    with pytest.raises(ValueError, match=r"9 rows.*\(5,\)"):
        loss(embeddings, labels[:5])
    with pytest.raises(ValueError, match="matrix"):
        loss(embeddings[0], labels[:1])
    with torch.no_grad():
        broken = embeddings.clone()
        broken[3, 2] = float("nan")
    with pytest.raises(ValueError, match="row 3"):
        loss(broken, labels)
    with pytest.raises(ValueError, match=r"loss='contrastiv'.*contrastive"):
        losses.build("contrastiv", C, D)
    with pytest.raises(ValueError, match=r"'gama'.*gamma"):
        losses.build("multi_similarity", C, D, gama=3)
    with pytest.raises(ValueError, match=r"7 dimensions.*8"):
        make("proxy_anchor")(embeddings[:, :7], labels)
    with pytest.raises(ValueError, match="label 4"):
        make("proxy_anchor")(embeddings, labels + 1)
    with pytest.raises(ValueError, match="reduction='pairs'"):
        losses.multi_similarity(reduction="pairs")


def test_means_by_library_reducers():
    """`reduction="pairs"` is the mean over positive pairs plus the mean over negative pairs."""
    embeddings, labels = batch()
    theirs = library.ContrastiveLoss(1, 0.3, distance=COSINE, reducer=MeanReducer())
    ours = losses.contrastive(0.3, reduction="pairs")
    torch.testing.assert_close(ours(embeddings, labels) + 1, theirs(embeddings, labels))
