"""Retrieval measures, exact, at matrix-product speed (book/01_retrieval, book/07_results).

Everything here follows from one number: how many negatives come before a positive in the list of a
query's neighbours. With n_j negatives before the j-th nearest of a query's R positives, that
positive has rank n_j + j, and

    Recall@K     = 1 if n_1 < K else 0
    R-Precision  = #{j : n_j + j <= R} / R
    MAP@R        = 1/R  sum over {j : n_j + j <= R} of  j / (n_j + j)

averaged over the queries (Musgrave et al., A Metric Learning Reality Check, ECCV 2020, section 3.2,
for the last two). So no list is ever sorted for Recall@K: one pass over the similarities counts.

**Similarity** is the cosine: the inner product of the L2-normalised embeddings (in float32 unless
they are float64), in exact arithmetic. **Ties** are decided against us: a negative that is as
similar as a positive comes before it. So a collapsed model, whose embeddings are all equal, has
Recall@K = 0 and not 1.

The passes run in float32, whose rounding error is bounded; a query whose verdict could change
within that bound is counted again in float64. So results depend neither on the block size, nor on
the order of the examples, nor on the library that multiplies the matrices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score
from torch import Tensor

TIE = 1e-12  # closer than this is equal: well above float64's rounding, well below float32's


@torch.no_grad()
def retrieval(
    embeddings: Tensor,
    labels: Tensor,
    *,
    gallery: Tensor | None = None,
    gallery_labels: Tensor | None = None,
    k: Sequence[int] = (1, 2, 4, 8),
    at_r: bool = True,
    clustering: bool = False,
    seed: int = 0,
    block: int = 2**23,
) -> dict[str, float | int]:
    """How well nearest neighbours share a query's class.

    Every embedding is a query once: among all others, itself left out, or among a `gallery`. A
    query without any relevant candidate (the only image of its class) is left out and counted; it
    remains a candidate for the others.

    Args:
        embeddings: of the queries, (n, D), any length and float type, on any device.
        labels: their classes, (n,) integers.
        gallery: embeddings that are searched, (m, D); None searches the queries among themselves.
        gallery_labels: their classes, (m,).
        k: the K of Recall@K, each from 1 to the number of candidates.
        at_r: also R-Precision and MAP@R, which look at the R nearest rather than at the first
            positive; without them the pass is about twice as fast.
        clustering: also NMI and AMI of k-means with as many clusters as there are classes, which
            takes much longer than all else.
        seed: of k-means.
        block: similarities held in memory at once, at least one query's; no result depends on it.

    Returns:
        In [0, 1]: `recall_at_<K>` for each K, `precision_at_1`, and as asked `r_precision`,
        `mean_average_precision_at_r`, `nmi`, `ami`; and the numbers of `queries` and of
        `queries_left_out`.

    Raises:
        ValueError: shapes that do not fit, embeddings that are not finite (with the first row), a K
            outside its range, one of gallery and gallery_labels without the other, no query with a
            relevant candidate.
    """
    search = _search(embeddings, labels, gallery, gallery_labels)
    candidates = len(search.gallery) - search.alone
    if wrong := [value for value in k if not 1 <= value <= candidates]:
        raise ValueError(f"k={wrong[0]} must be from 1 to the number of candidates, {candidates}")
    rows = search.relevant.nonzero()[:, 0]  # the queries that can be answered
    if len(rows) == 0:
        raise ValueError(
            f"none of the {len(search.query)} queries has a candidate of its own class"
        )
    ks = torch.tensor(sorted({1, *k}), device=rows.device)
    with _full_precision(rows.device.type):
        if at_r:
            first, r_precision, average_precision = _count_before_each(search, rows, ks, block)
        else:
            first = _count_before_first(search, rows, ks, block)
    result = {f"recall_at_{value}": _mean(first < value) for value in k}
    result["precision_at_1"] = _mean(first < 1)
    if at_r:
        result["r_precision"] = _mean(r_precision)
        result["mean_average_precision_at_r"] = _mean(average_precision)
    if clustering:
        result |= _clustering(search, seed)
    return result | {"queries": len(rows), "queries_left_out": len(search.query) - len(rows)}


def _mean(values: Tensor) -> float:
    return values.double().mean().item()


@dataclass
class _Search:
    """Queries and candidates as unit vectors, both sorted by class: the positives of neighbouring
    queries are then neighbours, and most of the similarity matrix has none."""

    query: Tensor  # (n, D)
    gallery: Tensor  # (m, D); the queries where they are searched among themselves
    query_class: Tensor  # (n,) rising, from 0
    gallery_class: Tensor  # (m,) rising; a class that no query has comes last
    relevant: Tensor  # (n,) positives of each query
    alone: bool  # whether the queries are searched among themselves

    @property
    def rounding(self) -> float:
        """Bound on the error of a float32 similarity and of rounding the threshold it is compared
        with: D products and sums of a relative error of 2^-24 (Higham, Accuracy and Stability of
        Numerical Algorithms, 2nd ed., eq. 3.5), and some room."""
        return 0.0 if self.query.dtype == torch.float64 else (self.query.shape[1] + 4) * 2.0**-24

    def similarity(self, rows: Tensor, columns: slice, dtype: torch.dtype) -> Tensor:
        """Of some queries to some candidates, (b, c), computed in `dtype`."""
        query, gallery = self.query[rows].to(dtype), self.gallery[columns]
        similarity = query.new_empty(len(rows), len(gallery))
        for start in range(0, len(gallery), 4000):  # so that no second gallery is made
            part = gallery[start : start + 4000].to(dtype)
            _multiply(query, part, similarity[:, start : start + 4000])
        return similarity

    def span(self, rows: Tensor) -> tuple[slice, Tensor]:
        """The candidates between which all positives of some queries, sorted, are; and which of
        them share a query's class, (b, c)."""
        ends = self.query_class[rows[[0, -1]]]
        start = torch.searchsorted(self.gallery_class, ends[0])
        stop = torch.searchsorted(self.gallery_class, ends[1], right=True)
        span = slice(int(start), int(stop))
        return span, self.query_class[rows, None] == self.gallery_class[span]

    def positives(self, rows: Tensor, similarity: Tensor | None = None) -> Tensor:
        """Float64 similarities of queries to their positives, falling, (b, largest R), -inf beyond
        a query's own R; picked from those to all candidates where they are there, (b, m)."""
        span, positive = self.span(rows)
        if similarity is None:
            similarity = self.similarity(rows, span, torch.float64)
        else:
            similarity = similarity[:, span]
        if self.alone:
            positive &= rows[:, None] != torch.arange(span.start, span.stop, device=rows.device)
        similarity = similarity.masked_fill(~positive, -math.inf)
        return similarity.topk(int(self.relevant[rows].max())).values


def _count_before_first(search: _Search, rows: Tensor, ks: Tensor, block: int) -> Tensor:
    """n_1 of each query, (len(rows),): exact as far as its comparison with every K goes."""
    n = len(search.query)
    best = search.query.new_full((n,), math.inf, dtype=torch.float64)
    for part in rows.split(64):  # few, so that their classes make up most of what is multiplied
        best[part] = search.positives(part)[:, 0]
    # a negative of similarity s: surely before if s >= upper, surely after if s < lower
    lower = (best - TIE - search.rounding).to(search.query.dtype)
    upper = (best - TIE + search.rounding).to(search.query.dtype)
    possible, certain = torch.zeros(2, n, dtype=torch.float64, device=rows.device)
    # on a CPU: a side that is a power of two is a tenth slower (rows on the same lines of the
    # cache), strips of a tile stay in the cache, and flags are faster as floats than as booleans
    side, strip = min(2000, math.isqrt(block)), 200
    tiles, flags = search.query.new_empty(side, side), search.query.new_empty(strip, side)
    for i in range(0, n, side):
        query, query_class = search.query[i : i + side], search.query_class[i : i + side]
        # s(a, b) = s(b, a): among themselves, each unordered pair of blocks is multiplied once
        for j in range(i if search.alone else 0, len(search.gallery), side):
            gallery = search.gallery[j : j + side]
            gallery_class = search.gallery_class[j : j + side]
            tile = _multiply(query, gallery, tiles[: len(query), : len(gallery)])
            if query_class[-1] >= gallery_class[0] and gallery_class[-1] >= query_class[0]:
                tile.masked_fill_(query_class[:, None] == gallery_class, -math.inf)
            columns = slice(j, j + side) if search.alone and j > i else None
            for start in range(0, len(tile), strip):
                part = tile[start : start + strip]
                rows_, flag = (
                    slice(i + start, i + start + len(part)),
                    flags[: len(part), : part.shape[1]],
                )
                for count, threshold in ((possible, lower), (certain, upper)):
                    count[rows_] += torch.ge(part, threshold[rows_, None], out=flag).sum(1)
                    if columns is not None:
                        count[columns] += torch.ge(part, threshold[columns], out=flag).sum(0)

    undecided = ((certain[:, None] < ks) != (possible[:, None] < ks)).any(1).nonzero()[:, 0]
    for part in _blocks(undecided, search, block):
        similarity = search.similarity(part, slice(None), torch.float64)
        span, same = search.span(part)
        similarity[:, span].masked_fill_(same, -math.inf)
        certain[part] = (similarity >= best[part, None] - TIE).sum(1).double()
    return certain[rows]


def _count_before_each(
    search: _Search, rows: Tensor, ks: Tensor, block: int
) -> tuple[Tensor, Tensor, Tensor]:
    """n_1 (up to the largest of K and R), R-Precision and average precision at R of each query,
    (len(rows),) each."""
    first = torch.empty(len(rows), dtype=torch.long, device=rows.device)
    r_precision, average_precision = first.double(), first.double()
    todo, rounding = torch.arange(len(rows), device=rows.device), search.rounding
    for dtype in (search.query.dtype, torch.float64):
        undecided = [todo[:0]]
        for part in _blocks(todo, search, block):
            similarity = search.similarity(rows[part], slice(None), dtype)
            exact = similarity if dtype == torch.float64 else None
            positive = search.positives(rows[part], exact)  # (b, R)
            span, same = search.span(rows[part])
            similarity[:, span].masked_fill_(same, -math.inf)
            nearest = similarity.topk(min(max(positive.shape[1], int(ks[-1])), similarity.shape[1]))
            nearest = nearest.values.flip(1).contiguous()  # negatives, (b, L), rising
            certain, possible = (
                nearest.shape[1] - torch.searchsorted(nearest, (positive - TIE + error).to(dtype))
                for error in (rounding, -rounding)
            )  # (b, R): n_j, at least and at most
            relevant = search.relevant[rows[part], None]  # R of each query, (b, 1)
            place = torch.arange(1, positive.shape[1] + 1, device=rows.device)  # j
            inside = (place <= relevant) & (certain + place <= relevant)
            precision = inside * place / (certain + place).double()
            first[part] = certain[:, 0]
            r_precision[part] = inside.sum(1) / relevant[:, 0].double()
            average_precision[part] = precision.sum(1) / relevant[:, 0]
            doubt = (inside & (certain != possible)).any(1)
            doubt |= ((certain[:, :1] < ks) != (possible[:, :1] < ks)).any(1)
            undecided.append(part[doubt])
        todo, rounding = torch.cat(undecided), 0.0
    return first, r_precision, average_precision


def _blocks(rows: Tensor, search: _Search, block: int) -> tuple[Tensor, ...]:
    """Rows in blocks whose similarities to all candidates are at most `block`."""
    if len(rows) == 0:
        return ()  # where torch gives one empty block
    return rows.split(max(1, min(256, block // len(search.gallery))))


def _multiply(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """a b^T, written to `out`. On a CPU by numpy, whose OpenBLAS was never slower than torch's MKL
    and up to 1.5 times as fast where it was measured (benchmarks/evaluate.py)."""
    if a.is_cuda:
        return torch.mm(a, b.T, out=out)
    np.matmul(a.numpy(), b.numpy().T, out=out.numpy())
    return out


def _clustering(search: _Search, seed: int) -> dict[str, float]:
    """Normalised and adjusted mutual information of the classes and of k-means on the queries."""
    labels = search.query_class.cpu().numpy()
    clusters = KMeans(int(labels[-1]) + 1, n_init=1, random_state=seed).fit_predict(
        search.query.cpu().numpy()
    )
    return {
        "nmi": float(normalized_mutual_info_score(labels, clusters)),
        "ami": float(adjusted_mutual_info_score(labels, clusters)),
    }


@contextmanager
def _full_precision(device: str):
    """Products of float32 matrices in float32, whatever the caller allows elsewhere."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


# -- input


def _search(query, query_labels, gallery, gallery_labels) -> _Search:
    """Checked, normalised and sorted by class."""
    if (gallery is None) != (gallery_labels is None):
        given, missing = ("gallery_labels", "gallery")[:: 1 if gallery is None else -1]
        raise ValueError(f"{given} without {missing}: give both or none")
    query, query_labels = _checked(query, query_labels, "")
    classes, query_class = query_labels.unique(return_inverse=True)
    if gallery is None:
        query_class, order = query_class.sort(stable=True)
        query = gallery = _unit(query, order, torch.promote_types(query.dtype, torch.float32), "")
        gallery_class = query_class
    else:
        gallery, gallery_labels = _checked(gallery, gallery_labels, "gallery_")
        gallery_labels, device = gallery_labels.to(query.device), query.device
        if gallery.shape[1] != query.shape[1]:
            raise ValueError(
                f"queries have {query.shape[1]} dimensions, the gallery has {gallery.shape[1]}"
            )
        index = torch.searchsorted(classes, gallery_labels).clamp_max(len(classes) - 1)
        gallery_class = torch.where(classes[index] == gallery_labels, index, len(classes))
        query_class, query_order = query_class.sort(stable=True)
        gallery_class, gallery_order = gallery_class.sort(stable=True)
        dtype = torch.promote_types(torch.promote_types(query.dtype, gallery.dtype), torch.float32)
        query = _unit(query, query_order, dtype, "")
        gallery = _unit(gallery.to(device), gallery_order, dtype, "gallery ")
    alone = gallery is query
    sizes = torch.bincount(gallery_class, minlength=len(classes))
    return _Search(
        query, gallery, query_class, gallery_class, sizes[query_class] - int(alone), alone
    )


def _checked(embeddings, labels, prefix: str) -> tuple[Tensor, Tensor]:
    embeddings = torch.as_tensor(embeddings)
    labels = torch.as_tensor(labels, device=embeddings.device)
    name = prefix.rstrip("_") or "embeddings"
    if embeddings.ndim != 2 or not embeddings.is_floating_point() or not embeddings.numel():
        raise ValueError(
            f"{name} must be (examples, dimensions) and floating point, not {embeddings.dtype} "
            f"of shape {tuple(embeddings.shape)}"
        )
    if labels.shape != embeddings.shape[:1] or labels.is_floating_point():
        raise ValueError(
            f"{prefix}labels must be ({len(embeddings)},) integers, one for each of {name}, not "
            f"{labels.dtype} of shape {tuple(labels.shape)}"
        )
    return embeddings, labels


def _unit(embeddings: Tensor, order: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """Embeddings in an order, each of length 1 (or 0): the one copy that is made of them."""
    length = torch.linalg.vector_norm(embeddings, dim=1, dtype=dtype)
    if bad := (~length.isfinite()).nonzero()[:, 0].tolist():
        raise ValueError(
            f"{name}embeddings are not finite (NaN, infinity or overflow) in {len(bad)} of "
            f"{len(length)} rows; the first is row {bad[0]}"
        )
    tiny = torch.finfo(dtype).tiny
    return embeddings[order].to(dtype).div_(length[order, None].clamp_min(tiny))
