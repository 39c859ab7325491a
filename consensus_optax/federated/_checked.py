"""What all ways to choose clients ask of their arguments."""

from __future__ import annotations

from consensus_optax import _check
from consensus_optax._typing import Array


def checked_counts(counts: Array, num_sampled: int, repeated: bool = False) -> Array:
    """The counts (num_clients,), or a ValueError that names what is wrong.

    Args:
      counts: how much data each client has.
      num_sampled: how many are to be drawn.
      repeated: whether one may be drawn more than once.
    """
    counts = _check.array("counts", counts, "an array (num_clients,)")
    if counts.ndim != 1 or not counts.size:
        raise ValueError(
            f"`counts` must have shape (num_clients,), one at least; got {counts.shape}"
        )
    _check.count("num_sampled", num_sampled)
    if num_sampled > counts.shape[0] and not repeated:
        most = f"at most the number of clients, {counts.shape[0]}"
        _check.fail("num_sampled", most, num_sampled)
    return counts
