"""What is less to send: rows, or what is made of them on each device first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from consensus_optax._rows.verbs import Leaf
from consensus_optax._rules.kinds import Fold
from consensus_optax.engines.mesh.exchange import Exchange
from consensus_optax.engines.mesh.factors import bytes_each


def combination_is_less(leaves: Sequence[Leaf], exchange: Exchange, wide: Any) -> bool:
    """Of a device's rows; ``wide`` is the dtype of decisions.

    One narrow row travels without loss in fewer bytes.
    """
    sizes = [x.dtype.itemsize for x in leaves]
    if all(x.shape[0] == 1 for x in leaves) and max(sizes) < 4:
        return False
    sizes = [wide.itemsize] * len(sizes) if min(sizes) >= 4 else sizes
    return _of_updates(exchange, sizes) <= _of_rows(leaves, exchange, False)


def statistics_are_less(
    rule: Fold, leaves: Sequence[Leaf], exchange: Exchange, wide: Any
) -> bool:
    """The same of a fold's, which are in the dtype of decisions; signs are int8."""
    sizes = [wide.itemsize * rule.num_arrays] * len(leaves)
    rows = _of_rows(leaves, exchange, rule.reads_signs)
    return _of_updates(exchange, sizes) < rows


def _of_updates(exchange: Exchange, sizes: Sequence[int]) -> int:
    """Bytes to each other device of an array like each parameter, of these sizes."""
    count = exchange.num_devices
    pairs = zip(exchange.spreads, sizes, strict=True)
    return sum(-(-math.prod(x.shape) // count) * size for x, size in pairs)


def _of_rows(leaves: Sequence[Leaf], exchange: Exchange, signs: bool) -> int:
    """The same of rows, or of their signs."""
    pairs = zip(leaves, exchange.spreads, strict=True)
    count = exchange.num_devices
    return sum(bytes_each(leaf, count, signs, s.stays) for leaf, s in pairs)
