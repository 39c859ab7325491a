"""Engines: how rows are obtained and a rule is run. They know kinds, never a rule."""

from consensus_optax.engines._value_and_reduced_grad import value_and_reduced_grad

__all__ = ["value_and_reduced_grad"]
