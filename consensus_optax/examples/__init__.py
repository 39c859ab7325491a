"""Example transformations: rows in, rows out, ahead of a reducer."""

from consensus_optax.examples._clip_examples import clip_examples
from consensus_optax.examples._normalize_examples import normalize_examples
from consensus_optax.examples._row_momentum import row_momentum

__all__ = ["clip_examples", "normalize_examples", "row_momentum"]
