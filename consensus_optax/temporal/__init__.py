"""Temporal transformations: one update in, one out, after a reducer."""

from consensus_optax.temporal._ema_agreement import ema_agreement
from consensus_optax.temporal._skip_if_empty import skip_if_empty

__all__ = ["ema_agreement", "skip_if_empty"]
