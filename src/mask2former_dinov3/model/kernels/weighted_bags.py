"""Weighted sums of table rows, and their transpose, by torch's embedding_bag."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

# G bags of k entries each, R rows of a table, d channels
# Rows per chunk on a CPU: allocating memory for all rows would cost more than the sums.
ROWS_AT_ONCE = 16384


def sum_bags(rows: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """Sum of each bag: over k of weights[g, k] * rows[index[g, k]].

    rows (R, d); index (G, k) int32 or int64; weights (G, k) -> (G, d).
    """
    return F.embedding_bag(index, rows, mode="sum", per_sample_weights=weights)


class TransposedBags:
    """The transpose of `sum_bags`, in a fixed order: without atomic additions or an array (G, k, d).

    Sorted by row, the sum that a row gets is itself a bag, of all bags that contain the row. The sort is done once and
    serves several weights.
    """

    def __init__(self, index: Tensor, rows: int) -> None:
        """index (G, k) into a table of `rows` rows."""
        held, self.order = torch.sort(index.flatten())
        self.first = torch.searchsorted(held, torch.arange(rows, dtype=held.dtype, device=held.device))
        self.bag = torch.div(self.order, index.shape[1], rounding_mode="floor")

    def __call__(self, bags: Tensor, weights: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Sums over all (g, k) with index[g, k] = r of weights[g, k] * bags[g], for one chunk of rows r after another.

        bags (G, d), weights (G, k). Yields (rows, sums (rows, d)) until all rows are done.
        """
        share = weights.flatten().index_select(0, self.order)
        rows = len(self.first)
        if bags.device.type != "cpu" or torch.compiler.is_compiling():
            yield slice(0, rows), F.embedding_bag(self.bag, bags, self.first, mode="sum", per_sample_weights=share)
            return
        edges = [*self.first[::ROWS_AT_ONCE].tolist(), len(share)]
        for number, (start, end) in enumerate(itertools.pairwise(edges)):
            some = slice(number * ROWS_AT_ONCE, min((number + 1) * ROWS_AT_ONCE, rows))
            held, first = self.bag[start:end], self.first[some] - start
            yield some, F.embedding_bag(held, bags, first, mode="sum", per_sample_weights=share[start:end])
