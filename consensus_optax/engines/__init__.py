"""Engines: how rows are obtained and a rule is run. They know kinds, never a rule."""

from consensus_optax.engines._sharded import sharded
from consensus_optax.engines._value_and_reduced_grad import value_and_reduced_grad
from consensus_optax.engines._worker_grad import worker_grad, worker_value_and_grad

__all__ = [
    "sharded",
    "value_and_reduced_grad",
    "worker_grad",
    "worker_value_and_grad",
]
