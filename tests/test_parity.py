"""Every loss in every precision beside an independent computation in double precision: value and
gradient, clean and mixed. The table of these differences is results/parity.csv."""

from pathlib import Path

import pandas as pd
import pytest
import torch

from dml import mixup
from tests import reference
from tests.test_losses import (
    LIBRARY,
    NAMES,
    OPTIONS,
    batch,
    library_pairs,
    make,
    value_and_gradients,
)

TABLE = Path(__file__).resolve().parents[1] / "results" / "parity.csv"
# relative; below float32 the loss is computed in float32 and its gradient rounded to the embeddings
BOUNDS = {"float64": 1e-6, "float32": 1e-3, "float16": 2**-10, "bfloat16": 2**-7}
KINDS, HARDEST, LAM = mixup.PAIRS, 2, 0.3


def library(name, embeddings, labels):
    _, theirs, less = library_pairs()[name]
    value, *gradients = value_and_gradients(theirs(embeddings, labels), embeddings, theirs)
    return [value - less, *gradients]


def loop(name, embeddings, labels, mixed):
    loss, row = make(name), reference.table(name, **OPTIONS[name])
    value = reference.clean(loss, row, embeddings, labels)
    if mixed:
        value = value + reference.mixed(loss, row, embeddings, labels, KINDS, HARDEST, LAM)
    return value_and_gradients(value, embeddings, loss)


def ours(name, embeddings, labels, mixed):
    dtype = torch.promote_types(embeddings.dtype, torch.float32)  # of the proxies
    more = {"nca": {"denominator": "all"}, "proxy_nca": {"denominator": "all"}}
    more = {} if mixed else {"contrastive": {"reduction": "nonzero_pairs"}, **more}
    loss = make(name, dtype, **more.get(name, {}))
    measured = mixup.Metrix(loss, KINDS, HARDEST, weight=1.0, draw="all") if mixed else loss
    value = measured(embeddings, labels, lam=LAM) if mixed else measured(embeddings, labels)
    return value_and_gradients(value, embeddings, loss)


@pytest.mark.parametrize("precision", BOUNDS)
@pytest.mark.parametrize("mixed", [False, True], ids=["clean", "mixed"])
@pytest.mark.parametrize("name", NAMES)
def test_value_and_gradient_agree(name, mixed, precision, parities):
    x, labels = batch(dtype=getattr(torch, precision))
    exact = x.detach().double().requires_grad_()  # the same numbers
    if mixed or name not in LIBRARY:
        expected, against = loop(name, exact, labels, mixed), "double loop"
    else:
        expected, against = library(name, exact, labels), "pytorch-metric-learning"
    value, *gradients = (tensor.double() for tensor in ours(name, x, labels, mixed))
    row = {
        "loss": name,
        "mixing": "embedding" if mixed else "none",
        "precision": precision,
        "against": against,
        "value": ((value - expected[0]).abs() / expected[0].abs().clamp(min=1)).item(),
        "gradient": max(
            ((a - b).abs().max() / b.abs().max()).item()
            for a, b in zip(gradients, expected[1:], strict=True)
        ),
    }
    assert row["value"] <= BOUNDS[precision] and row["gradient"] <= BOUNDS[precision], row
    parities.append(row)


def test_the_table_of_the_book_has_a_row_for_each_and_keeps_the_bounds():
    table = pd.read_csv(TABLE)
    key = ["loss", "mixing", "precision"]
    assert not table.duplicated(key).any()
    assert len(table) == len(NAMES) * 2 * len(BOUNDS)
    bound = table["precision"].map(BOUNDS)
    assert (table["value"] <= bound).all() and (table["gradient"] <= bound).all()
