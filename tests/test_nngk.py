"""Laws of the Gaussian kernels and of MbDML: the formula written as loops, finite anywhere, and
what each way of mixing is made of."""

import math

import numpy as np
import pytest
import torch

from dml import nngk

FAISS = pytest.mark.skipif(nngk._faiss() is None, reason="faiss is not installed")


def centres(n=60, dimensions=5, classes=6, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    x = scale * torch.randn(n, dimensions, generator=generator, dtype=torch.float64)
    return x, torch.arange(n) % classes


def kernels(neighbours=20, sigma=1.5, **given):
    x, y = centres(**given)
    model = nngk.GaussianKernels(x, y, sigma, neighbours)
    generator = torch.Generator().manual_seed(1)
    model.log_weights.data = torch.randn(len(x), generator=generator, dtype=torch.float64)
    return model


def features(n=8, dimensions=5, seed=2):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, dimensions, generator=generator, dtype=torch.float64)
    return x.requires_grad_()


def by_loops(model, x, exclude):
    """p(y | x) of one example after the other, as the formula is written."""
    rows = []
    for feature, left_out in zip(x, exclude, strict=True):
        left = [i for i in range(len(model.centres)) if i not in left_out]
        left.sort(key=lambda i: (feature - model.centres[i]).norm().item())
        strengths = {
            i: model.log_weights[i].exp()
            * torch.exp(-(feature - model.centres[i]).square().sum() / (2 * model.sigma**2))
            for i in left[: model.neighbours]
        }
        p = [
            sum((s for i, s in strengths.items() if model.centre_labels[i] == c), torch.tensor(0.0))
            for c in range(model.num_classes)
        ]
        rows.append(torch.stack(p) / sum(strengths.values()))
    return torch.stack(rows)


def gradients(loss, *inputs):
    return [torch.zeros_like(i) if g is None else g for i, g in zip(
        inputs, torch.autograd.grad(loss, inputs, allow_unused=True), strict=True)]  # fmt: skip


@pytest.mark.parametrize("left_out", [0, 1, 2])
@pytest.mark.parametrize("neighbours", [12, 30, 58])
def test_value_and_gradients_are_those_of_the_formula_written_as_loops(neighbours, left_out):
    model, x = kernels(neighbours), features()
    y = torch.arange(8) % 6
    exclude = torch.arange(16).view(8, 2)[:, :left_out]
    fast = model(x, exclude if left_out else None)
    slow = by_loops(model, x, exclude.tolist())
    there = slow > 0
    assert torch.allclose(fast.exp()[there], slow[there], atol=1e-12)
    own = there[torch.arange(8), y]  # the others have probability 0
    assert own.sum() >= 6
    losses = [
        -fast[torch.arange(8), y][own].sum(),
        -slow[torch.arange(8), y][own].log().sum(),
    ]
    found, expected = (gradients(loss, x, model.log_weights) for loss in losses)
    for a, b in zip(found, expected, strict=True):
        assert b.abs().max() > 1e-3 and torch.allclose(a, b, atol=1e-12)


def test_probabilities_of_the_classes_add_up_to_one_where_all_are_near():
    p = kernels(neighbours=60)(features()).exp()
    assert torch.allclose(p.sum(1), torch.ones(8, dtype=torch.float64))


def test_a_centre_left_out_is_as_if_it_were_not_there():
    x, y = centres(n=30)
    f = features(n=1)
    with_all = nngk.GaussianKernels(x, y, 1.5, 10)
    own = torch.tensor(7)
    without = torch.arange(30) != own
    fewer = nngk.GaussianKernels(x[without], y[without], 1.5, 10)
    assert torch.allclose(with_all(f, own[None]), fewer(f))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sigmas", [100, 10_000])
def test_finite_when_all_neighbours_are_far_away(dtype, sigmas):
    x, y = centres(scale=0.1)
    model = nngk.GaussianKernels(x.to(dtype), y, 1.0, 20)
    f = (features().detach() * 0 + sigmas / math.sqrt(5)).to(dtype).requires_grad_()
    log_p = model(f, torch.arange(8))
    loss = torch.nn.functional.nll_loss(log_p, torch.arange(8) % 6)
    assert torch.isfinite(log_p).all() and torch.isfinite(loss)
    for gradient in gradients(loss, f, model.log_weights):
        assert torch.isfinite(gradient).all() and gradient.abs().max() > 0


def test_a_class_without_a_centre_among_the_neighbours_is_finite_and_pulled():
    x = torch.tensor([[0.0, 0], [0, 1], [1, 0], [9, 9], [9, 8]])
    model = nngk.GaussianKernels(x, torch.tensor([0, 0, 0, 1, 1]), sigma=1.0, neighbours=3)
    f = torch.zeros(1, 2, requires_grad=True)
    log_p = model(f)
    assert log_p[0, 0].item() == 0  # alone among the neighbours: the formula's p is 1
    assert torch.isfinite(log_p).all() and log_p[0, 1] < -50
    (gradient,) = gradients(-log_p[0, 1], f)
    assert (gradient < 0).all()  # a step against it goes towards class 1


def test_a_class_whose_only_centre_is_left_out_is_finite():
    model = nngk.GaussianKernels(torch.eye(3), torch.tensor([0, 0, 1]), sigma=0.1, neighbours=2)
    f = torch.eye(3)[2:].clone().requires_grad_()
    log_p = model(f, torch.tensor([2]))
    assert torch.isfinite(log_p).all()
    assert all(torch.isfinite(g).all() for g in gradients(-log_p[0, 1], f, model.log_weights))


def test_nearest_are_the_first_of_a_sort_in_any_number_of_blocks(monkeypatch):
    monkeypatch.setattr(nngk, "BLOCK", 7)
    monkeypatch.setattr(nngk, "_faiss", lambda: None)
    x, _ = centres(n=40)
    expected = torch.cdist(x, x).fill_diagonal_(torch.inf).argsort(1)[:, :9]
    assert torch.equal(nngk.nearest(x, x, 9, torch.arange(40)[:, None]), expected)
    assert torch.equal(nngk.nearest(x, x, 1)[:, 0], torch.arange(40))


@FAISS
def test_nearest_are_the_same_by_faiss(monkeypatch):
    x = centres(n=40)[0].float()
    own = torch.stack([torch.arange(40), torch.arange(40).roll(1)], 1)
    found = nngk.nearest(x, x, 9, own)
    monkeypatch.setattr(nngk, "_faiss", lambda: None)
    assert torch.equal(found, nngk.nearest(x, x, 9, own))


def test_refreshed_centres_move_and_keep_their_weights():
    model, moved = kernels(), centres(seed=5)[0]
    fresh = nngk.GaussianKernels(moved, model.centre_labels, model.sigma, model.neighbours)
    fresh.log_weights.data = model.log_weights.data.clone()
    before = model(features())
    model.refresh(moved)
    assert torch.equal(model(features()), fresh(features()))
    assert not torch.allclose(model(features()), before)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"sigma": 0.0}, "sigma=0.0"),
        ({"sigma": -1.0}, "sigma=-1.0"),
        ({"neighbours": 61}, r"neighbours=61 is not in 1 to 60"),
        ({"neighbours": 0}, r"neighbours=0"),
    ],
)
def test_bad_settings_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        kernels(**change)


def test_bad_centres_are_named():
    x, y = centres()
    with pytest.raises(ValueError, match="class 2 has no centre"):
        nngk.GaussianKernels(x[y != 2], y[y != 2], neighbours=20)
    with pytest.raises(ValueError, match=r"\(60, 5\) with \(59,\)"):
        nngk.GaussianKernels(x, y[1:])
    with pytest.raises(ValueError, match=r"neighbours=60 is not in 1 to 59.*1 of them left out"):
        kernels(60)(features(), torch.arange(8))
    with pytest.raises(ValueError, match="neighbours=41 is not in 1 to 40"):
        nngk.nearest(x, x[:40], 41)


# -- MbDML

LABELS, OWN = torch.arange(8) % 6, torch.arange(8)


def loss_of(method, seed=0, **given):
    """The method on one batch, inputs being their own features; the same seed mixes alike."""
    torch.manual_seed(0)
    rng = np.random.default_rng(seed)
    criterion = nngk.MbDML(method, kernels(neighbours=50), generator=rng, **given).double()
    criterion.refresh(criterion.kernels.centres.clone())
    return criterion, criterion(lambda x: x, features(), LABELS, OWN)


def test_the_methods_are_sums_of_their_parts_with_the_papers_weights():
    nn, mixup, one, two, three = (loss_of(m)[1] for m in nngk.METHODS)
    assert torch.allclose(one, nn + 2 * mixup)
    assert torch.allclose(three, nn + two)


@pytest.mark.parametrize("method", ["mbdml2", "mixup"])
def test_a_mixed_loss_is_the_classifier_on_mixed_inputs_with_mixed_targets(method):
    criterion, loss = loss_of(method, seed=3)
    rng = np.random.default_rng(3)
    lam, order = rng.beta(1, 1), rng.permutation(8)
    x = features()
    mixed = torch.stack([lam * x[i] + (1 - lam) * x[j] for i, j in enumerate(order)])
    if method == "mixup":
        p = criterion.linear(mixed).softmax(1)
    else:
        p = by_loops(criterion.kernels, mixed, [{i, int(j)} for i, j in enumerate(order)])
    expected = -sum(
        lam * p[i, LABELS[i]].log() + (1 - lam) * p[i, LABELS[j]].log() for i, j in enumerate(order)
    )
    assert torch.allclose(loss, criterion.method.c * expected / 8)
    inputs = [criterion.kernels.log_weights] if method == "mbdml2" else [criterion.linear.weight]
    for a, b in zip(
        gradients(loss, *inputs), gradients(criterion.method.c * expected / 8, *inputs), strict=True
    ):
        assert a.abs().max() > 1e-4 and torch.allclose(a, b)


def test_alpha_0_does_not_mix():
    _, plain = loss_of("nngk")
    criterion, two = loss_of("mbdml2", alpha=0)
    partners = torch.from_numpy(np.random.default_rng(0).permutation(8))
    log_p = criterion.kernels(features(), torch.stack([OWN, OWN[partners]], 1))
    assert torch.allclose(two, 2 * torch.nn.functional.nll_loss(log_p, LABELS))
    assert not torch.allclose(two, 2 * plain)  # the partner's centre is left out, too


def test_released_takes_channels_for_logits_and_the_neighbours_of_the_last_refresh():
    criterion, _ = loss_of("mbdml1")
    with pytest.raises(ValueError, match="5 channels cannot be logits of 6 classes"):
        nngk.MbDML("mbdml1", criterion.kernels, released=True)
    narrow = kernels(classes=3)
    released = nngk.MbDML("mbdml1", narrow, released=True)
    assert torch.equal(released.logits(features()), features()[:, :3])
    released, _ = loss_of("mbdml2", released=True)
    x = released.kernels.centres
    distance = torch.cdist(x, x).fill_diagonal_(torch.inf)
    assert torch.equal(released.found, distance.argsort(1)[:, :50])
    far = features().detach() + 100  # neighbours stay those found at the refresh
    loss = released(lambda x: x, far, LABELS, OWN)
    loss.backward()
    touched = released.kernels.log_weights.grad != 0
    assert set(touched.nonzero().flatten().tolist()) <= set(released.found[:8].flatten().tolist())
    assert not torch.allclose(loss_of("mbdml2")[1], loss_of("mbdml2", released=True)[1])


def test_bad_methods_are_named():
    with pytest.raises(ValueError, match="'mbdml4' is not one of: nngk, mixup, mbdml1"):
        nngk.MbDML("mbdml4", kernels())
    with pytest.raises(ValueError, match="alpha=-1"):
        nngk.MbDML("mbdml2", kernels(), alpha=-1)
