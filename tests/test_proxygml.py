"""Laws of ProxyGML: the formula by loops, its limits, what stays finite, what is refused."""

import math

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning.miners import MultiSimilarityMiner

from dml import data, losses, proxygml, train

B, C, N, D = 7, 5, 3, 4


def problem(seed=0, **options):
    """A loss in float64, a batch that lacks a class, and proxies of any length."""
    generator = torch.Generator().manual_seed(seed)
    loss = proxygml.ProxyGML(C, D, N, **{"r": 0.4, **options}).double()
    loss.proxies.data = torch.randn(C, N, D, generator=generator, dtype=torch.float64)
    embeddings = torch.randn(B, D, generator=generator, dtype=torch.float64, requires_grad=True)
    return loss, embeddings, torch.tensor([0, 1, 2, 3, 0, 1, 3])


def cross_entropy(scores, label):
    """-log softmax of the class among a dict of scores, one exponential after the other."""
    return torch.stack([z.exp() for z in scores.values()]).sum().log() - scores[label]


def example_by_loops(loss, x, own, bonus=math.inf, masked=True):
    """Z of one example, class by class, from the most similar proxies (eq-propagation)."""
    k = math.ceil(loss.r * C * N)
    edges = []
    for c in range(C):
        for n in range(N):
            w = loss.proxies[c, n]
            s = x @ w / (x.norm() * w.norm())
            edges.append((s.item() + (bonus if c in own else 0), s.item(), c, s))
    edges.sort(key=lambda edge: (edge[0], edge[1]), reverse=True)
    scores = {} if masked else {c: torch.zeros((), dtype=torch.float64) for c in range(C)}
    for _, _, c, s in edges[:k]:
        scores[c] = scores.get(c, 0.0) + s
    return scores


def by_loops(loss, embeddings, labels, **options):
    """eq-proxygml as it is written."""
    total = 0.0
    for x, y in zip(embeddings, labels.tolist(), strict=True):
        scores = example_by_loops(loss, x, (y,), **options)
        if y in scores:
            total = total + cross_entropy(scores, y) / len(labels)
    unit = F.normalize(loss.proxies, dim=2)
    for c in range(C):
        for n in range(N):
            scores = {j: sum(unit[c, n] @ unit[j, m] for m in range(N)) for j in range(C)}
            total = total + loss.weight_lambda * cross_entropy(scores, c) / (C * N)
    return total


def value_and_gradients(value, *of):
    return value.item(), *torch.autograd.grad(value, of)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"positive_bonus": 1.0},
        {"positive_bonus": 0.0},
        {"masked": False},
        {"positive_bonus": 0.0, "masked": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("r", [0.1, 0.2, 0.4, 0.99, 1.0])
def test_value_and_both_gradients_are_those_of_the_formula(r, options):
    for seed in range(4):
        loss, x, labels = problem(seed, r=r, **options)
        reference = {"bonus": loss.positive_bonus, "masked": loss.masked}
        ours = value_and_gradients(loss(x, labels), x, loss.proxies)
        theirs = value_and_gradients(by_loops(loss, x, labels, **reference), x, loss.proxies)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_gradients_are_the_differences_of_the_value():
    loss, x, labels = problem()

    def value(x, proxies):
        return torch.func.functional_call(loss, {"proxies": proxies}, (x, labels))

    assert torch.autograd.gradcheck(value, (x, loss.proxies))


def test_one_proxy_a_class_all_kept_and_no_regulariser_is_a_plain_softmax():
    loss = proxygml.ProxyGML(C, D, 1, r=1.0, weight_lambda=0.0).double()
    _, x, labels = problem()
    cosine = F.normalize(x, dim=1) @ F.normalize(loss.proxies[:, 0], dim=1).T
    ours = value_and_gradients(loss(x, labels), x, loss.proxies)
    plain = value_and_gradients(F.cross_entropy(cosine, labels), x, loss.proxies)
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b)


def test_the_regulariser_in_blocks_is_the_regulariser(monkeypatch):
    loss, x, labels = problem()
    whole = value_and_gradients(loss(x, labels), loss.proxies)
    monkeypatch.setattr(proxygml.OwnClass, "BLOCK", 2 * C * N)
    blocks = value_and_gradients(loss(x, labels), loss.proxies)
    for a, b in zip(whole, blocks, strict=True):
        torch.testing.assert_close(a, b)


def test_the_graph_keeps_k_proxies_the_own_ones_among_them_and_the_most_similar_of_the_rest():
    loss, x, labels = problem(r=0.5)
    similarity, index = loss.graph(x, labels[:, None])
    every = F.cosine_similarity(x[:, None], loss.proxies.flatten(0, 1)[None], dim=2)
    torch.testing.assert_close(similarity, every.gather(1, index))
    assert index.shape == (B, math.ceil(0.5 * C * N))
    for row, kept, y in zip(every, index, labels.tolist(), strict=True):
        assert len(kept.unique()) == len(kept)
        own = set(range(y * N, (y + 1) * N))
        assert own <= set(kept.tolist())
        others = torch.tensor(sorted(set(range(C * N)) - own))
        nearest = others[row[others].topk(len(kept) - N).indices]
        assert set(kept.tolist()) - own == set(nearest.tolist())


def test_a_bonus_of_1000_keeps_what_the_mask_keeps_and_1_may_lose_an_own_proxy():
    always, x, labels = problem(r=0.25)
    x.data[0] = -always.proxies[0, 0]  # as far from one of its own proxies as can be
    kept = {}
    for bonus in (math.inf, 1000.0, 1.0):
        always.positive_bonus = bonus
        kept[bonus] = always.graph(x, labels[:, None])[1].sort(1).values
    assert torch.equal(kept[math.inf], kept[1000.0])
    assert 0 in kept[math.inf][0] and 0 not in kept[1.0][0]


def test_where_only_the_own_class_fits_into_the_graph_nothing_is_learnt():
    loss, x, labels = problem(r=1 / C, weight_lambda=0.0)
    value, *gradients = value_and_gradients(loss(x, labels), x, loss.proxies)
    assert abs(value) < 1e-12
    assert all(gradient.abs().max() < 1e-12 for gradient in gradients)


def test_k_is_the_ceiling_of_r_c_n_whatever_the_rounding_of_their_product():
    assert 0.07 * 100 > 7
    assert proxygml.ProxyGML(100, D, 1, r=0.07).kept == 7
    assert proxygml.ProxyGML(98, D, 12, r=0.05).kept == 59
    assert proxygml.ProxyGML(11318, 2, 1, r=0.05).kept == 566


@pytest.mark.parametrize("length", [1e-6, 1.0, 1e6])
def test_only_directions_count(length):
    loss, x, labels = problem()
    expected = loss(x, labels)
    loss.proxies.data *= length
    torch.testing.assert_close(loss(x * length, labels), expected)


def test_a_class_whose_scores_cancel_stays_in_the_softmax():
    """The released code takes a score of exactly 0 for a class that is not in the graph."""
    loss = proxygml.ProxyGML(2, 2, 2, r=1.0, weight_lambda=0.0).double()
    up, right = [0.0, 1.0], [1.0, 0.0]
    loss.proxies.data = torch.tensor([[up, [0.0, -1.0]], [right, right]], dtype=torch.float64)
    x = torch.tensor([[0.6, 0.8]], dtype=torch.float64)
    expected = math.log(1 + math.exp(1.2))  # scores 0 and 1.2
    assert loss(x, torch.tensor([0])).item() == pytest.approx(expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_finite_and_close(dtype):
    loss, x, labels = problem(weight_lambda=0.3)
    exact = loss(x, labels).item()
    loss.to(dtype)
    x = x.detach().to(dtype).requires_grad_()
    value, *gradients = value_and_gradients(loss(x, labels), x, loss.proxies)
    assert value == pytest.approx(exact, rel=0.05)
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_many_proxies_a_class_do_not_overflow():
    """Scores of hundreds, whose exponentials no float32 holds."""
    loss = proxygml.ProxyGML(4, D, 500, r=1.0)
    loss.proxies.data = loss.proxies.data[:, :1].expand(4, 500, D).clone()
    x = loss.proxies.data[:, 0].clone().requires_grad_()
    value, *gradients = value_and_gradients(loss(x, torch.tensor([1, 0, 3, 2])), x, loss.proxies)
    assert math.isfinite(value) and value > 100
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_half_precision_under_autocast_is_full_precision():
    loss, x, labels = problem()
    loss, x = loss.float(), x.detach().float()
    with torch.autocast("cpu", torch.bfloat16):
        inside = loss(x, labels)
    torch.testing.assert_close(inside, loss(x, labels), rtol=0, atol=0)


def saved_numbers(loss, x, labels):
    """How many numbers autograd keeps for the backward pass, parameters and input apart."""
    kept, seen = [], {loss.proxies.data_ptr()}

    def pack(tensor):
        if tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss(x, labels)
    return sum(kept)


def test_what_is_kept_for_the_backward_pass_grows_with_the_edges_not_with_the_matrix():
    classes, batch = 4000, 64
    loss = proxygml.ProxyGML(classes, D, 1, r=0.01, weight_lambda=0.0)
    x, labels = torch.randn(batch, D, requires_grad=True), torch.arange(batch)
    assert saved_numbers(loss, x, labels) < batch * classes / 4


def test_training_pulls_examples_to_their_class():
    loss, x, labels = problem(r=0.5)
    optimizer = torch.optim.Adam([x, loss.proxies], lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        loss(x, labels).backward()
        optimizer.step()
    score = F.cosine_similarity(x[:, None, None], loss.proxies[None], dim=3).sum(2)  # (B, C)
    assert torch.equal(score.argmax(1), labels)


# -- Mixed examples: our own extension


def test_a_mixed_example_has_the_cross_entropies_of_both_parents_classes_in_its_own_graph():
    loss, x, labels = problem(r=0.6)
    i, j, lam = torch.tensor([0, 2, 5]), torch.tensor([1, 3, 4]), 0.3
    mixed = lam * F.normalize(x, dim=1)[i] + (1 - lam) * F.normalize(x, dim=1)[j]
    ours = loss.per_example(mixed, labels[i], labels[j], lam)
    for value, v, y, y_ in zip(ours, mixed, labels[i].tolist(), labels[j].tolist(), strict=True):
        scores = example_by_loops(loss, v, (y, y_))
        expected = lam * cross_entropy(scores, y) + (1 - lam) * cross_entropy(scores, y_)
        torch.testing.assert_close(value, expected)


def test_a_graph_of_one_edge_holds_for_a_mixed_example_too():
    loss, x, labels = problem(r=0.01)
    value = loss.per_example(x[:1], labels[:1], labels[1:2], 0.5)
    assert loss.kept == 1 and value.abs().item() < 1e-12  # one class of the two, alone


def test_weight_zero_is_the_clean_loss_and_embeddings_are_the_default_space():
    loss, x, labels = problem(r=0.6)
    clean = loss(x, labels)
    mixed = proxygml.MixedProxyGML(loss, weight=0.0)
    torch.testing.assert_close(mixed(x, labels), clean)
    mixed = proxygml.MixedProxyGML(loss, hardest=2)
    unit = F.normalize(x, dim=1)
    own = mixed(x, labels, mix=lambda i, j, lam: lam * unit[i] + (1 - lam) * unit[j], lam=0.3)
    torch.testing.assert_close(mixed(x, labels, lam=0.3), own)
    assert own > clean


def test_parents_are_the_most_similar_examples_of_other_classes():
    _, x, labels = problem()
    unit = F.normalize(x.detach(), dim=1)
    i, j = proxygml.MixedProxyGML(problem()[0], hardest=2).parents(unit, labels)
    for a in range(B):
        others = [b for b in range(B) if labels[b] != labels[a]]
        others.sort(key=lambda b: -(unit[a] @ unit[b]).item())
        assert set(j[i == a].tolist()) == set(others[:2])


def test_a_batch_of_one_class_has_nothing_to_mix():
    loss, x, labels = problem()
    alone = torch.zeros_like(labels)
    torch.testing.assert_close(proxygml.MixedProxyGML(loss)(x, alone), loss(x, alone))


@pytest.mark.parametrize("mix", train.MIXES)
def test_it_trains_by_name_with_every_mix(mix):
    config = train.Config(
        dataset="digits", loss="proxygml", loss_options={"proxies_per_class": 4, "r": 0.5}, mix=mix,
        epochs=2, batch_size=50, images_per_class=10, embedding_size=8, device="cpu",
    )  # fmt: skip
    parts, outcome = train.fit(config, data.load("digits"))
    assert outcome["history"][1]["loss"] < outcome["history"][0]["loss"]
    expected = proxygml.ProxyGML if mix == "none" else proxygml.MixedProxyGML
    assert isinstance(parts.criterion, expected)


# -- Bad input, by name


@pytest.mark.parametrize("r", [0.0, -0.1, 1.01, math.nan])
def test_r_outside_its_range_is_refused(r):
    with pytest.raises(ValueError, match=r"r must lie in \(0, 1\]"):
        proxygml.ProxyGML(C, D, N, r=r)


@pytest.mark.parametrize(
    "name, value",
    [
        ("num_classes", 0),
        ("embedding_size", 0),
        ("proxies_per_class", 0),
        ("weight_lambda", -1.0),
        ("positive_bonus", math.nan),
    ],
)
def test_a_size_or_weight_out_of_range_is_named(name, value):
    options = {"num_classes": C, "embedding_size": D, name: value}
    with pytest.raises(ValueError, match=name):
        proxygml.ProxyGML(**options)


@pytest.mark.parametrize("label", [-1, C])
def test_a_label_without_proxies_is_named(label):
    loss, x, labels = problem()
    labels[3] = label
    with pytest.raises(ValueError, match=f"label {label} has no proxy: classes are 0 to {C - 1}"):
        loss(x, labels)


def test_embeddings_of_another_dimension_or_not_finite_are_refused():
    loss, x, labels = problem()
    with pytest.raises(ValueError, match=f"embeddings have {D + 1} dimensions, proxies {D}"):
        loss(torch.randn(B, D + 1), labels)
    x.data[2, 1] = math.nan
    with pytest.raises(ValueError, match="not finite: row 2"):
        loss(x, labels)
    with pytest.raises(ValueError, match="labels have shape"):
        loss(x, labels[:-1])


def test_pairs_of_examples_are_refused():
    loss, x, labels = problem()
    pairs = MultiSimilarityMiner()(x, labels)
    for more in ({"indices_tuple": pairs}, {"ref_emb": x, "ref_labels": labels}):
        with pytest.raises(ValueError, match="compares examples with proxies"):
            loss(x, labels, **more)


def test_an_unknown_option_of_a_recipe_is_named_with_what_is_valid():
    with pytest.raises(ValueError, match=r"option of proxygml='N'.*proxies_per_class"):
        losses.build("proxygml", C, D, train.OTHERS, N=3)
    with pytest.raises(ValueError, match="soft_triple cannot be mixed"):
        train.Config(loss="soft_triple", mix="embed")
    assert isinstance(
        losses.build("soft_triple", C, D, train.OTHERS, centers_per_class=2),
        losses.SoftTripleLoss,
    )


def test_clustering_is_measured_where_asked_after_the_last_epoch():
    config = train.Config(
        dataset="digits", loss="proxygml", loss_options={"r": 0.5}, mix="none", clustering=True,
        epochs=2, eval_every=1, batch_size=50, images_per_class=10, embedding_size=8, device="cpu",
    )  # fmt: skip
    outcome = train.fit(config, data.load("digits"))[1]
    assert 0 < outcome["metrics"]["last"]["nmi"] <= 1
    assert ["nmi" in row for row in outcome["history"]] == [False, True]


def test_frozen_batch_norm_keeps_its_statistics_and_adams_epsilon_counts():
    def trained(**more):
        config = train.Config(
            dataset="digits", loss="proxygml", loss_options={"r": 0.5}, mix="none", epochs=1,
            batch_size=50, images_per_class=10, embedding_size=8, device="cpu", **more,
        )  # fmt: skip
        parts, outcome = train.fit(config, data.load("digits"))
        return parts.network.backbone[1], outcome["history"][0]["loss"]

    norm, loss = trained()
    assert isinstance(norm, torch.nn.BatchNorm2d) and norm.running_mean.abs().max() > 0
    assert trained(frozen_bn=True)[0].running_mean.abs().max() == 0
    assert trained(adam_eps=0.1)[1] != loss
