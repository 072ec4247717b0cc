"""Laws of the other mixing methods: their limits are the clean loss, their values a loop's, and
each trains by its name."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dml import analysis, data, losses, mixing_methods, mixup, train

C, D, B = 4, 6, 12
LABELS = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 0, 2])
PAIRWISE = ["contrastive", "multi_similarity", "nca"]
PROXIES = ["proxy_anchor", "proxy_nca", "proxy_nca_pp"]


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(B, D, generator=generator, dtype=torch.float64)
    return x.requires_grad_(), LABELS


def make(name):
    torch.manual_seed(1)
    return losses.build(name, C, D).double()


def method(name, loss, seed=0, **settings):
    shape = {"num_classes": C, "embedding_size": D}
    generator = np.random.default_rng(seed)
    made = mixing_methods.build(name, make(loss), generator, **shape | settings)
    return made.double()


def value_and_gradient(value, x):
    return value.item(), torch.autograd.grad(value, x, retain_graph=True)[0]


def assert_same(a, b, x):
    (value, slope), (other, other_slope) = value_and_gradient(a, x), value_and_gradient(b, x)
    assert value == pytest.approx(other, rel=1e-9, abs=1e-12)
    torch.testing.assert_close(slope, other_slope, rtol=1e-8, atol=1e-10)


VALID = [
    (name, loss)
    for name, of in mixing_methods.METHODS.items()
    for loss in PAIRWISE + PROXIES
    if of.compares in (None, "proxies" if loss in PROXIES else "examples")
]


@pytest.mark.parametrize(("name", "loss"), VALID)
def test_the_same_generator_gives_the_same_loss_and_a_gradient_to_every_example(name, loss):
    x, labels = batch()
    first, second = (method(name, loss, seed=7)(x, labels) for _ in range(2))
    assert first == second and first.isfinite()
    slope = torch.autograd.grad(first, x)[0]
    assert slope.isfinite().all() and (slope.abs().sum(1) > 0).any()


@pytest.mark.parametrize(("name", "loss"), VALID)
def test_the_random_numbers_are_the_generators_alone(name, loss):
    """Or else two methods of one seed would see different weights and batches."""
    x, labels = batch()
    made, state = method(name, loss), torch.get_rng_state()
    made(x, labels)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("name", "loss"), VALID)
def test_a_batch_without_pairs_to_mix_is_finite_and_has_a_gradient(name, loss):
    x, _ = batch()
    for labels in (torch.zeros(3, dtype=torch.long), torch.arange(3)):
        value = method(name, loss)(x[:3], labels)
        assert value.isfinite()
        assert torch.autograd.grad(value, x)[0].isfinite().all()


@pytest.mark.parametrize(("name", "loss"), VALID)
def test_half_precision_is_computed_in_full(name, loss):
    x, labels = batch()
    full = method(name, loss).float()(x.detach().bfloat16().float(), labels)
    half = method(name, loss).float()(x.detach().bfloat16(), labels)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(full.item(), rel=1e-4)


# -- The loss is interpolated

SHUFFLED = torch.tensor([3, 7, 1, 0, 11, 2, 9, 4, 10, 5, 8, 6])


@pytest.mark.parametrize("loss", PAIRWISE + PROXIES)
def test_idml_at_lambda_one_is_the_clean_loss_twice(loss):
    x, labels = batch()
    idml = method("idml", loss, weight=1.0)
    assert_same(idml(x, labels, lam=1.0), 2 * idml.loss(x, labels), x)


@pytest.mark.parametrize("loss", PAIRWISE + PROXIES)
def test_lambda_zero_gives_the_other_parents_with_their_labels(loss):
    """A permutation of the batch, which has the batch's loss."""
    x, labels = batch()
    idml = method("idml", loss, weight=1.0)
    assert_same(idml(x, labels, lam=0.0, partners=SHUFFLED), 2 * idml.loss(x, labels), x)


@pytest.mark.parametrize("loss", PAIRWISE)
def test_imix_at_lambda_one_compares_each_example_with_the_whole_batch(loss):
    """Its own unmixed image among its positives, as in the paper."""
    x, labels = batch()
    imix = method("imix", loss, weight=1.0)
    expected = imix.loss(x, labels) + imix.loss(x, labels, ref_emb=x, ref_labels=labels)
    assert_same(imix(x, labels, lam=1.0), expected, x)


def test_where_the_loss_is_linear_in_labels_mixing_losses_is_mixing_labels():
    """i-Mix with the contrastive loss is Metrix's generic loss of interpolated labels."""
    x, labels = batch()
    loss, lam = make("contrastive"), 0.3
    ours = mixing_methods.IMix(loss, weight=1.0)(x, labels, lam=lam, partners=SHUFFLED)
    unit = F.normalize(x, dim=1)
    same = (labels[:, None] == labels).double()
    similarity = F.normalize(lam * unit + (1 - lam) * unit[SHUFFLED], dim=1) @ unit.T
    label = lam * same + (1 - lam) * same[SHUFFLED]
    generic = loss.reduce(similarity, label, torch.ones(B, B, dtype=torch.bool))
    assert_same(ours - loss(x, labels), generic, x)


def test_where_it_is_not_they_differ():
    x, labels = batch()
    loss, lam = make("multi_similarity"), 0.3
    ours = mixing_methods.IMix(loss, weight=1.0)(x, labels, lam=lam, partners=SHUFFLED)
    unit = F.normalize(x, dim=1)
    same = (labels[:, None] == labels).double()
    similarity = F.normalize(lam * unit + (1 - lam) * unit[SHUFFLED], dim=1) @ unit.T
    label = lam * same + (1 - lam) * same[SHUFFLED]
    generic = loss.reduce(similarity, label, torch.ones(B, B, dtype=torch.bool))
    assert abs(ours - loss(x, labels) - generic) > 1e-3


def test_imix_has_a_dominant_parent():
    imix = method("imix", "contrastive", alpha=1.0)
    drawn = [imix.draw_lam() for _ in range(200)]
    assert 0.5 <= min(drawn) < 0.6 and 0.9 < max(drawn) <= 1


@pytest.mark.parametrize("loss", ["contrastive", "proxy_anchor"])
def test_plain_mixup_is_the_cross_entropy_of_interpolated_targets(loss):
    x, labels = batch()
    made, lam = method("input_ce", loss, weight=1.0), 0.3
    ours = made(x, labels, lam=lam, partners=SHUFFLED) - made.loss(x, labels)
    unit, proxies = F.normalize(x, dim=1), F.normalize(made.classifier.proxies, dim=1)
    mixed = F.normalize(lam * unit + (1 - lam) * unit[SHUFFLED], dim=1)
    hard = F.one_hot(labels, C).double()
    target = lam * hard + (1 - lam) * hard[SHUFFLED]
    assert_same(ours, F.cross_entropy(mixed @ proxies.T * 9, target), x)


@pytest.mark.parametrize("name", ["imix", "idml", "input_ce"])
def test_another_space_that_is_the_embeddings_own_gives_the_same(name):
    x, labels = batch()
    made = method(name, "multi_similarity")
    unit = F.normalize(x, dim=1)
    given = {"lam": 0.3, "partners": SHUFFLED}
    other = made(x, labels, mix=lambda i, j, lam: mixup.interpolate(unit, i, j, lam), **given)
    assert_same(made(x, labels, **given), other, x)


# -- MoCHi


@pytest.mark.parametrize("loss", PAIRWISE + PROXIES)
def test_mochi_equals_a_loop_over_anchors_that_makes_every_mixture(loss):
    x, labels = batch()
    k, seed = 3, 5
    made = method("mochi", loss, seed, hardest=k)
    clean = made.loss.compare(x, labels)
    anchors, columns = clean.similarity.shape
    k = min(k, columns)
    draws = np.random.default_rng(seed)
    parents, lam = draws.integers(k, size=(3, anchors, k)), draws.random((2, anchors, k))
    rows = [[], [], []]
    for a in range(anchors):
        negatives = [n for n in range(columns) if clean.mask[a, n] and not clean.label[a, n]]
        hard = sorted(negatives, key=lambda n: -clean.similarity[a, n].item())[:k]
        s, label, mask = list(clean.similarity[a]), list(clean.label[a]), list(clean.mask[a])
        for kind, c in itertools.product((0, 1), range(k)):
            first, second = (parents[0], parents[1]) if kind == 0 else (None, parents[2])
            chosen = [r[a, c] for r in (first, second) if r is not None]
            real = max(chosen) < len(hard)
            if real:
                v = clean.candidates[hard[second[a, c]]]
                u = clean.anchors[a] if kind else clean.candidates[hard[first[a, c]]]
                t = lam[1][a, c] / 2 if kind else lam[0][a, c]
                v = F.normalize(t * u + (1 - t) * v, dim=0)
            s.append(clean.anchors[a] @ v if real else s[0] * 0)
            label.append(torch.tensor(False))
            mask.append(torch.tensor(real))
        for row, values in zip(rows, (s, label, mask), strict=True):
            row.append(torch.stack(values))
    expected = made.loss.reduce(*map(torch.stack, rows), clean.present)
    assert_same(made(x, labels), expected, x)


def test_mochi_only_ever_repels():
    """Its mixtures are negatives, so a loss that grows with negatives is never below the clean."""
    x, labels = batch()
    for seed in range(5):
        made = method("mochi", "multi_similarity", seed)
        assert made(x, labels) >= made.loss(x, labels)


# -- Embedding Expansion


@pytest.mark.parametrize("n", [0, 1, 2])
@pytest.mark.parametrize("loss", PAIRWISE)
def test_embedding_expansion_equals_a_loop_over_every_point_of_two_classes(loss, n):
    x, labels = batch()
    made = mixing_methods.EmbeddingExpansion(make(loss), n)
    unit = F.normalize(x, dim=1)
    points = {}
    for c in range(C):
        own = [unit[i] for i in range(B) if labels[i] == c]
        points[c] = own + [
            F.normalize((k * u + (n + 1 - k) * v) / (n + 1), dim=0)
            for u, v in itertools.combinations(own, 2)
            for k in range(1, n + 1)
        ]
    rows = []
    for a in range(B):
        row = []
        for b in range(B):
            if labels[a] == labels[b]:
                row.append(unit[a] @ unit[b])
            else:
                of_two = itertools.product(points[labels[a].item()], points[labels[b].item()])
                row.append(max((u @ v for u, v in of_two), key=lambda s: s.item()))
        rows.append(torch.stack(row))
    clean = made.loss.compare(x, labels)
    expected = made.loss.reduce(torch.stack(rows), clean.label, clean.mask, clean.present)
    assert_same(made(x, labels), expected, x)


def test_more_points_between_a_class_never_make_its_negatives_easier():
    x, labels = batch()
    unit = F.normalize(x, dim=1)
    negative = labels[:, None] != labels
    clean, *expanded = (
        mixing_methods.EmbeddingExpansion(make("contrastive"), n).hardest(unit, labels)[negative]
        for n in (0, 1, 3, 7)  # each divides the lines of the one before
    )
    assert (clean >= (unit @ unit.T)[negative]).all()
    for before, after in itertools.pairwise([clean, *expanded]):
        assert (after >= before - 1e-12).all()


def test_classes_of_one_example_each_have_no_line_to_expand():
    x, labels = batch()[0][:5], torch.arange(5)
    made = mixing_methods.EmbeddingExpansion(make("multi_similarity"))
    assert_same(made(x, labels), made.loss(x, labels), x)


# -- Proxy Synthesis

OF_ANOTHER_CLASS = torch.tensor([3, 7, 8, 0, 11, 2, 9, 4, 10, 5, 8, 6])


@pytest.mark.parametrize("loss", PROXIES)
def test_proxy_synthesis_is_the_clean_loss_of_more_classes(loss):
    x, labels = batch()
    lam = 0.3
    made = method("proxy_synthesis", loss)
    unit, proxies = F.normalize(x, dim=1), F.normalize(made.loss.proxies, dim=1)
    mixed = lam * unit + (1 - lam) * unit[OF_ANOTHER_CLASS]
    merged = lam * proxies[labels] + (1 - lam) * proxies[labels[OF_ANOTHER_CLASS]]
    enlarged = losses.build(loss, C + B, D).double()
    with torch.no_grad():
        enlarged.proxies.copy_(torch.cat([proxies, merged]))
    expected = enlarged(torch.cat([unit, mixed]), torch.cat([labels, C + torch.arange(B)]))
    assert_same(made(x, labels, lam=lam, partners=OF_ANOTHER_CLASS), expected, x)
    torch.autograd.grad(made(x, labels), made.loss.proxies)


def test_the_partners_of_proxy_synthesis_are_of_another_class():
    made = method("proxy_synthesis", "proxy_anchor")
    for _ in range(10):
        i, j = made.draw_partners(LABELS)
        assert torch.equal(i, torch.arange(B))
        assert (LABELS[i] != LABELS[j]).all()


def test_at_lambda_one_a_synthetic_class_repels_the_images_of_an_old_one():
    """The false negatives that Metrix's authors name: even a perfect embedding cannot tell them."""
    x, labels = torch.eye(C, D, dtype=torch.float64), torch.arange(C)
    made = method("proxy_synthesis", "proxy_nca_pp")
    with torch.no_grad():
        made.loss.proxies.copy_(x)
    at_half, at_one = (made(x, labels, lam=lam, partners=labels.roll(1)) for lam in (0.5, 1.0))
    assert made.loss(x, labels) < 0.01
    assert at_one > np.log(2) > at_half


# -- By name, in training

SMALL = {"dataset": "digits", "batch_size": 50, "images_per_class": 10, "epochs": 1}
SMALL |= {"embedding_size": 8, "device": "cpu"}


def config(name, **more):
    loss = "proxy_anchor" if name == "proxy_synthesis" else "multi_similarity"
    return train.Config(**{**SMALL, "loss": loss, "mix": name, **more})


@pytest.mark.parametrize("name", mixing_methods.METHODS)
def test_trains_by_its_name_the_same_for_the_same_seed(name):
    sets = data.load("digits")
    first, second, other = (
        train.fit(config(name, seed=seed), sets)[1]["history"][0]["loss"] for seed in (0, 0, 1)
    )
    assert first == second != other


def test_equal_seeds_start_from_equal_weights_whatever_the_method():
    sets = data.load("digits")
    device = torch.device("cpu")
    for loss, names in (
        ("multi_similarity", ["embed", "imix", "mochi", "embedding_expansion", "input_ce", "idml"]),
        ("proxy_anchor", ["embed", "imix", "mochi", "proxy_synthesis", "input_ce", "idml"]),
    ):
        baseline = train.build(config("none", loss=loss), sets, device)
        for name in names:
            parts = train.build(config(name, loss=loss), sets, device)
            for ours, theirs in (
                (parts.network, baseline.network),
                (parts.criterion.loss, baseline.criterion),
            ):
                for key, value in theirs.state_dict().items():
                    assert torch.equal(ours.state_dict()[key], value), (name, key)


@pytest.mark.parametrize("change", [{"alpha": 0.1}, {"weight": 2.0}])
@pytest.mark.parametrize("name", ["imix", "input_ce", "idml"])
def test_a_setting_that_a_method_has_reaches_it(name, change):
    parts = train.build(config(name, **change), data.load("digits"), torch.device("cpu"))
    ((key, value),) = change.items()
    assert getattr(parts.criterion, key) == value


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"mix": "proxy_synthesis", "loss": "contrastive"}, r"'contrastive'.*proxy_anchor"),
        ({"mix": "embedding_expansion", "loss": "proxy_nca"}, r"'proxy_nca'.*multi_similarity"),
        ({"mix": "idml", "loss": "proxygml"}, r"mix='idml'.*proxygml"),
        ({"mix": "i-mix"}, r"mix='i-mix'.*imix, mochi"),
    ],
)
def test_a_method_without_a_meaning_for_the_loss_is_refused_before_any_work(given, says):
    with pytest.raises(ValueError, match=says):
        train.Config(**given)


def test_bad_arguments_are_named():
    x, labels = batch()
    for name, bad in (
        ("idml", {"alpha": 0.0}),
        ("imix", {"weight": -1.0}),
        ("mochi", {"hardest": 0}),
    ):
        with pytest.raises(ValueError, match=next(iter(bad))):
            method(name, "contrastive", **bad)
    with pytest.raises(TypeError, match="GenericLoss"):
        mixing_methods.IMix(torch.nn.Identity())
    with pytest.raises(ValueError, match="lam"):
        method("idml", "contrastive")(x, labels, lam=1.5)
    with pytest.raises(ValueError, match="mix="):
        method("mochi", "contrastive")(x, labels, mix=lambda i, j, lam: x)
    with pytest.raises(ValueError, match="labels"):
        method("embedding_expansion", "contrastive")(x, labels[:3])


def test_a_record_may_hold_the_measures_of_the_space_after_its_last_epoch():
    sets = data.load("digits")
    settings = config("embed", space=True, epochs=2, eval_every=1)
    parts, outcome = train.fit(settings, sets)
    measured = train.evaluate_on(parts.network, sets, settings, torch.device("cpu"), space=True)
    for name in analysis.MEASURES:
        assert outcome["metrics"]["last"][name] == measured[name]
        assert name not in outcome["history"][0]
