"""Weightings: rules that need only inner products of rows, and combine rows by wᵀJ."""

from consensus_optax.weightings._after import after
from consensus_optax.weightings._among import among
from consensus_optax.weightings._cosine_filter import cosine_filter
from consensus_optax.weightings._mean import mean
from consensus_optax.weightings._normalized_mean import normalized_mean
from consensus_optax.weightings._subspace_weighting import subspace_weighting

__all__ = [
    "after",
    "among",
    "cosine_filter",
    "mean",
    "normalized_mean",
    "subspace_weighting",
]
