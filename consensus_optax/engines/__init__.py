"""Engines: sources of rows other than memory, and what hands them to the interpreter.

They know kinds of rule, never a rule. Imports ``_running``, ``_gradients`` and below.
"""

from consensus_optax.engines._accumulate import accumulate
from consensus_optax.engines._sharded import sharded
from consensus_optax.engines._value_and_reduced_grad import value_and_reduced_grad

__all__ = [
    "accumulate",
    "sharded",
    "value_and_reduced_grad",
]
