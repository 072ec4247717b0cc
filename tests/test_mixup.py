"""Laws of Metrix: lambda 1 and 0 give the parents back, every loss, kind of pair and space equals
the formula's loop."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning import losses as library
from pytorch_metric_learning import miners

from dml import losses, mixup
from tests import reference
from tests.test_losses import (
    DEGENERATE,
    NAMES,
    OPTIONS,
    C,
    D,
    assert_same,
    batch,
    make,
    value_and_gradients,
)

KINDS = [*[(kind,) for kind in mixup.PAIRS], mixup.PAIRS]
LABELS = (0, 0, 1, 1, 1, 2, 3, 0, 2)


def embedding_mix(embeddings):
    """Mixing "in another space" that is in truth the embeddings' own: both paths must agree."""
    unit = F.normalize(embeddings, dim=1)
    return lambda i, j, lam: mixup.interpolate(unit, i, j, lam)


def mixed_term(metrix, embeddings, labels, **given):
    """w = 1 makes total - clean the mixed loss."""
    return metrix(embeddings, labels, **given) - metrix.loss(embeddings, labels)


@pytest.mark.parametrize("hardest", [None, 2])
@pytest.mark.parametrize("kinds", KINDS, ids="+".join)
@pytest.mark.parametrize("name", NAMES)
def test_equals_a_loop_over_anchors_and_pairs_written_as_the_formula(name, kinds, hardest):
    loss, (embeddings, labels) = make(name), batch(LABELS)
    metrix = mixup.Metrix(loss, kinds, hardest, weight=1.0, draw="all")
    row = reference.table(name, **OPTIONS[name])
    expected = reference.mixed(loss, row, embeddings, labels, kinds, hardest, 0.3)
    ours = mixed_term(metrix, embeddings, labels, lam=0.3)
    if not expected.requires_grad:  # one proxy a class: no two positive proxies to mix
        assert ours == expected == 0
        return
    assert_same(
        value_and_gradients(ours, embeddings, loss),
        value_and_gradients(expected, embeddings, loss),
        1e-8,
    )


@pytest.mark.parametrize("per_pair", [False, True], ids=["one lambda", "a lambda a pair"])
@pytest.mark.parametrize("kinds", KINDS, ids="+".join)
@pytest.mark.parametrize(
    "name", [name for name in NAMES if "nca_pp" not in name and name != "proxy_nca"]
)
def test_mixing_elsewhere_equals_mixing_similarities_where_elsewhere_is_here(name, kinds, per_pair):
    loss, (embeddings, labels) = make(name), batch(LABELS)
    metrix = mixup.Metrix(loss, kinds, draw="all")
    lam = torch.rand(len(labels), len(labels), dtype=torch.float64) if per_pair else 0.7
    gram = metrix(embeddings, labels, lam=lam)
    made = metrix(embeddings, labels, lam=lam, mix=embedding_mix(embeddings))
    assert_same(
        value_and_gradients(gram, embeddings, loss),
        value_and_gradients(made, embeddings, loss),
        1e-8,
    )


@pytest.mark.parametrize("name", ["proxy_nca", "proxy_nca_pp"])
def test_with_proxies_as_candidates_the_mixed_example_takes_the_anchors_place(name):
    loss, (embeddings, labels) = make(name), batch(LABELS)
    metrix = mixup.Metrix(loss, "anchor-negative", hardest=2, weight=1.0)
    row = reference.table(name, **OPTIONS[name])
    x, w, lam = F.normalize(embeddings, dim=1), F.normalize(loss.proxies, dim=1), 0.3
    anchors = []
    for i, y in enumerate(labels.tolist()):
        negatives = [j for j in range(len(labels)) if labels[j] != y]
        for j in sorted(negatives, key=lambda j, i=i: -(x[i] @ x[j]).item())[:2]:
            v = F.normalize(lam * x[i] + (1 - lam) * x[j], dim=0)
            y_v = [lam * (c == y) + (1 - lam) * (c == labels[j].item()) for c in range(C)]
            terms = list(zip(y_v, v @ w.T, strict=True))
            anchors.append((terms, reference.anchor_loss(row, terms, loss.denominator)))
    expected = reference.reduce(anchors, loss.reduction)
    ours = mixed_term(metrix, embeddings, labels, lam=lam, mix=embedding_mix(embeddings))
    assert_same(
        value_and_gradients(ours, embeddings, loss), value_and_gradients(expected, embeddings, loss)
    )


def test_the_gram_form_equals_the_similarity_to_the_mixed_vector():
    generator = torch.Generator().manual_seed(0)
    a, p, n = F.normalize(torch.randn(3, 1000, D, generator=generator, dtype=torch.float64), dim=2)
    for lam in (0.0, 0.2, 0.5, 1.0):
        made = (a * F.normalize(lam * p + (1 - lam) * n, dim=1)).sum(1)
        gram = mixup.mixed_similarity((a * p).sum(1), (a * n).sum(1), (p * n).sum(1), lam)
        torch.testing.assert_close(gram, made)


@pytest.mark.parametrize("name", [name for name in NAMES if make(name).reduction == "anchors"])
@pytest.mark.parametrize("kind", mixup.PAIRS)
def test_lambda_one_and_zero_give_the_parents_back(name, kind):
    """l~(a) of unmixed candidates: l(a) over the first, or the second parents, as often as they are
    parents."""
    loss, (embeddings, labels) = make(name), batch(LABELS)
    metrix = mixup.Metrix(loss, kind, hardest=None, weight=1.0)
    pairs = loss.compare(embeddings, labels)
    for lam in (1.0, 0.0):
        rows, (family,) = metrix.parents(pairs, (kind,))
        label = torch.full(
            family.j.shape, lam * family.label_i + (1 - lam) * family.label_j
        ).double()
        if lam == 0.0:
            parent = pairs.similarity[rows].gather(1, family.j)
        elif family.i is None:
            parent = torch.ones_like(label)
        else:
            parent = pairs.similarity[rows].gather(1, family.i)
        expected = loss.reduce(parent, label, family.mask)
        torch.testing.assert_close(mixed_term(metrix, embeddings, labels, lam=lam), expected)


def test_lambda_one_recovers_the_clean_loss():
    """Two examples a class: mixed with lambda 1, each anchor's only positive is all of V(a)'s
    positives. With one negative for each, the contrastive loss over positive parents is the clean
    positive part."""
    loss = losses.contrastive(margin=2.0)  # a margin no similarity reaches: only positives count
    embeddings, labels = batch((0, 0, 1, 1, 2, 2))
    metrix = mixup.Metrix(loss, "positive-negative", hardest=1, weight=1.0)
    torch.testing.assert_close(
        mixed_term(metrix, embeddings, labels, lam=1.0), loss(embeddings, labels)
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_the_batch_does_not_matter(name):
    loss, (embeddings, labels) = make(name), batch(LABELS)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(3))
    metrix = mixup.Metrix(loss, mixup.PAIRS, draw="all")
    # two of a kind are ordered by the batch, which lambda = 1/2 does not see
    torch.testing.assert_close(
        metrix(embeddings[order], labels[order], lam=0.5), metrix(embeddings, labels, lam=0.5)
    )
    metrix = mixup.Metrix(loss, draw="all")
    torch.testing.assert_close(
        metrix(embeddings[order], labels[order], lam=0.2), metrix(embeddings, labels, lam=0.2)
    )


@pytest.mark.parametrize("seed", range(3))
def test_parents_have_the_labels_of_their_kind_and_negatives_are_the_hardest(seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 5, (40,), generator=generator)
    embeddings, _ = batch(labels.tolist(), seed=seed)
    pairs = losses.contrastive().compare(embeddings, labels)
    metrix = mixup.Metrix(losses.contrastive(), hardest=3)
    for kind in mixup.PAIRS:
        rows, (family,) = metrix.parents(pairs, (kind,))
        anchor = rows[:, None].expand_as(family.j)
        for parent, label in ((family.i, family.label_i), (family.j, family.label_j)):
            if parent is None:
                continue
            same = (labels[parent] == labels[anchor])[family.mask]
            assert (same == bool(label)).all()
            assert (parent != anchor)[family.mask].all()
        if family.i is not None and family.label_i == family.label_j:
            assert (family.i < family.j)[family.mask].all()
        if not family.label_j:
            chosen = pairs.similarity[rows].gather(1, family.j)
            negative = labels[rows][:, None] != labels[None]
            third = pairs.similarity[rows].masked_fill(~negative, -2).topk(3, dim=1).values[:, -1:]
            assert (chosen >= third)[family.mask].all()


def test_a_pair_is_mixed_once_however_many_anchors_use_it():
    embeddings, labels = batch((0, 0, 0, 0, 1))
    seen = []

    def mix(i, j, lam):
        seen.extend(zip(i.tolist(), j.tolist(), strict=True))
        return mixup.interpolate(embeddings, i, j, lam)

    metrix = mixup.Metrix(losses.contrastive(), "positive-negative")
    metrix(embeddings, labels, mix=mix)
    # anchors 0-3 share their positives and the one negative; anchor 4 has no positive
    assert sorted(seen) == [(p, 4) for p in range(4)]


def test_drawn_positives_bound_the_number_of_mixed_examples():
    embeddings, labels = batch(tuple(range(4)) * 5)
    for positives in (1, 2, None):
        count = []

        def mix(i, j, lam, count=count):
            count.append(len(i))
            return mixup.interpolate(embeddings, i, j, lam)

        metrix = mixup.Metrix(losses.contrastive(), "positive-negative", 1, positives=positives)
        metrix(embeddings, labels, mix=mix)
        assert count[0] <= len(labels) * (positives or 4)
        assert positives is None or count[0] > len(labels) * (positives - 1) / 2


def test_all_randomness_comes_from_the_generator():
    embeddings, labels = batch(LABELS)

    def run(seed):
        metrix = mixup.Metrix(
            make("multi_similarity"),
            mixup.PAIRS,
            positives=1,
            lam_per="pair",
            generator=np.random.default_rng(seed),
        )
        return [metrix(embeddings, labels).item() for _ in range(8)]

    assert run(0) == run(0) != run(1)


def test_lambda_is_beta_distributed_and_kinds_are_drawn_evenly():
    metrix = mixup.Metrix(losses.contrastive(), alpha=2.0, generator=np.random.default_rng(0))
    embeddings, labels = batch(LABELS)
    pairs = losses.contrastive().compare(embeddings, labels)
    lam = np.array([metrix._draw_lam(pairs) for _ in range(4000)])
    assert abs(lam.mean() - 0.5) < 0.01 and abs(lam.var() - 1 / 20) < 0.003  # of Beta(2, 2)
    kinds = [metrix._draw_kinds()[0] for _ in range(2000)]
    assert 900 < kinds.count("positive-negative") < 1100


@pytest.mark.parametrize("labels", DEGENERATE.values(), ids=DEGENERATE)
@pytest.mark.parametrize("kinds", KINDS, ids="+".join)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("elsewhere", [False, True], ids=["embed", "elsewhere"])
def test_a_degenerate_batch_has_a_finite_loss_and_gradient(name, kinds, labels, elsewhere):
    loss, (embeddings, labels) = make(name), batch(labels)
    metrix = mixup.Metrix(loss, kinds, draw="all")
    mix = embedding_mix(embeddings) if elsewhere else None
    for tensor in value_and_gradients(metrix(embeddings, labels, mix=mix), embeddings, loss):
        assert tensor is not None and tensor.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_opposite_and_equal_embeddings_stay_finite_at_scales_of_100(name, dtype):
    scales = {"beta": 100.0, "gamma": 100.0, "temperature": 0.01}
    loss = make(
        name, torch.float32, **{key: scales[key] for key in OPTIONS[name].keys() & scales.keys()}
    )
    x = F.one_hot(torch.zeros(4, dtype=torch.long), D).to(dtype)
    embeddings = (x * torch.tensor([1, 1, -1, -1], dtype=dtype)[:, None]).requires_grad_()
    metrix = mixup.Metrix(loss, mixup.PAIRS, draw="all")
    value = metrix(embeddings, torch.tensor([0, 1, 0, 1]), lam=0.5)
    for tensor in value_and_gradients(value, embeddings, loss):
        assert tensor.isfinite().all()


def test_parents_are_the_pairs_that_a_miner_keeps():
    embeddings, labels = batch(LABELS)
    loss = make("multi_similarity")
    metrix = mixup.Metrix(loss, "positive-negative", None, weight=1.0)
    mined = miners.MultiSimilarityMiner(0.1)(embeddings, labels)
    a1, p, a2, n = mined
    kept = {
        (a.item(), i.item(), j.item())
        for (a, i), (b, j) in itertools.product(zip(a1, p, strict=True), zip(a2, n, strict=True))
        if a == b
    }
    x, lam = F.normalize(embeddings, dim=1), 0.4
    row = reference.table("multi_similarity", **OPTIONS["multi_similarity"])
    anchors = []
    for a in range(len(labels)):
        terms = [
            (lam, x[a] @ F.normalize(lam * x[i] + (1 - lam) * x[j], dim=0))
            for b, i, j in sorted(kept)
            if b == a
        ]
        if terms:
            anchors.append((terms, reference.anchor_loss(row, terms)))
    expected = loss(embeddings, labels, mined) + reference.reduce(anchors, "anchors")
    torch.testing.assert_close(metrix(embeddings, labels, mined, lam=lam), expected)


def test_the_librarys_memory_takes_metrix_and_never_mixes_an_anchor_with_its_own_copy():
    metrix = mixup.Metrix(make("contrastive"), "positive-positive", weight=1.0)
    embeddings, labels = batch(
        (0, 0, 1, 1)
    )  # one positive each besides itself: no two positives to mix
    fresh = library.CrossBatchMemory(metrix, D, memory_size=20)
    clean = library.CrossBatchMemory(metrix.loss, D, memory_size=20)
    torch.testing.assert_close(fresh(embeddings, labels), clean(embeddings, labels))


def test_bad_input_is_refused_by_name():
    loss = losses.contrastive()
    embeddings, labels = batch()
    metrix = mixup.Metrix(loss)
    with pytest.raises(ValueError, match="alpha must be positive, not 0"):
        mixup.Metrix(loss, alpha=0)
    with pytest.raises(ValueError, match="hardest must be positive, not -1"):
        mixup.Metrix(loss, hardest=-1)
    with pytest.raises(ValueError, match=r"'positive-neg'.*valid are positive-negative"):
        mixup.Metrix(loss, pairs=("positive-neg",))
    with pytest.raises(ValueError, match="none given"):
        mixup.Metrix(loss, pairs=())
    with pytest.raises(ValueError, match="draw='some'"):
        mixup.Metrix(loss, draw="some")
    with pytest.raises(TypeError, match=r"GenericLoss, not ContrastiveLoss"):
        mixup.Metrix(library.ContrastiveLoss())
    with pytest.raises(ValueError, match=r"lam must lie in \[0, 1\], not 1.2"):
        metrix(embeddings, labels, lam=1.2)
    with pytest.raises(ValueError, match="9 rows"):
        metrix(embeddings, labels[:4])
    with torch.no_grad():
        broken = embeddings.clone()
        broken[1, 0] = float("inf")
    with pytest.raises(ValueError, match="row 1"):
        metrix(broken, labels)
    with pytest.raises(ValueError, match="label 4"):
        mixup.Metrix(make("proxy_anchor"))(embeddings, labels + 1)


def test_more_hardest_negatives_than_there_are_means_all():
    embeddings, labels = batch(LABELS)
    given = {"lam": 0.3, "pairs": "positive-negative"}
    many, every = (mixup.Metrix(losses.contrastive(), hardest=k) for k in (1000, None))
    torch.testing.assert_close(
        many(embeddings, labels, **given), every(embeddings, labels, **given)
    )
