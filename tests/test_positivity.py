"""Laws of positivity: exact for a lone mixture, the ends of lambda, and what the formula leaves
out."""

import math

import pytest
import torch

from dml import analysis, losses
from tests.test_losses import NAMES, C, D, batch, make

LAMBDAS = (0.05, 0.3, 0.5, 0.7, 0.95)


def crowd(seed=0, spread=0.6):
    """Ten classes of six examples around their centres, so that similarities cover a range."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(10).repeat_interleave(6)
    centres = torch.randn(10, D, generator=generator, dtype=torch.float64)
    noise = torch.randn(60, D, generator=generator, dtype=torch.float64)
    return centres[labels] + spread * noise, labels


@pytest.mark.parametrize("lam", LAMBDAS)
@pytest.mark.parametrize(
    "loss",
    [
        losses.multi_similarity(),
        losses.multi_similarity(2.0, 5.0, 0.3),
        losses.proxy_anchor(10, D, margin=0.2, beta=8.0).double(),
    ],
    ids=["metrix", "soft", "proxy anchor"],
)
def test_the_formula_is_exact_for_a_lone_mixed_embedding(loss, lam):
    result = analysis.positivity(loss, *crowd(), lam, alone=True)
    assert ((result.similarity <= result.threshold) == result.positive).all()
    assert result.measured == result.predicted


def test_the_formula_is_not_exact_for_several_mixed_embeddings_of_an_anchor():
    result = analysis.positivity(losses.multi_similarity(2.0, 5.0, 0.3), *crowd(), 0.5)
    assert 0 < result.measured != result.predicted < 1


def test_the_threshold_is_the_papers():
    loss = losses.multi_similarity(18, 75, 0.77)
    for lam in LAMBDAS:
        expected = math.log(lam / (1 - lam)) / (18 + 75) + 0.77
        assert analysis.threshold(loss, lam) == pytest.approx(expected)
    assert analysis.threshold(loss, 0.0) == -math.inf
    assert analysis.threshold(loss, 1.0) == math.inf


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("contrastive", "proxy_nca_pp")])
def test_without_a_closed_form_there_is_no_prediction(name):
    loss = make(name)
    closed = name in ("multi_similarity", "proxy_anchor")
    assert math.isnan(analysis.threshold(loss, 0.4)) != closed


@pytest.mark.parametrize(
    "name", ["contrastive", "multi_similarity", "proxy_anchor", "binomial_deviance"]
)
def test_lambda_one_attracts_and_lambda_zero_never_does(name):
    embeddings, labels = batch()
    loss = make(name, **({"margin": -1.0} if name == "contrastive" else {}))
    assert analysis.positivity(loss, embeddings, labels, 1.0).measured == 1.0
    assert analysis.positivity(loss, embeddings, labels, 0.0).measured == 0.0


def test_contrastive_attracts_below_its_margin_or_above_one_half():
    loss = losses.contrastive(0.3)
    for lam in LAMBDAS:
        result = analysis.positivity(loss, *crowd(), lam)
        expected = (result.similarity <= 0.3) | torch.tensor(lam >= 0.5)
        assert (result.positive == expected).all()


def test_the_threshold_grows_with_lambda():
    borders = [analysis.threshold(losses.multi_similarity(), lam) for lam in (0, *LAMBDAS, 1)]
    assert borders == sorted(borders)


def test_a_batch_without_pairs_to_mix_is_refused():
    embeddings, labels = batch((0, 1, 2, 3))
    with pytest.raises(ValueError, match="no anchor of this batch"):
        analysis.positivity(losses.multi_similarity(), embeddings, labels, 0.5)
    with pytest.raises(ValueError, match=r"lam must lie in \[0, 1\]"):
        analysis.positivity(losses.multi_similarity(), embeddings, labels, 1.5)
    assert C > 3  # the labels above have proxies
