"""Weightings: rules that need only inner products of rows, and combine rows by wᵀJ."""

from consensus_optax.weightings._adasum import adasum
from consensus_optax.weightings._after import after
from consensus_optax.weightings._among import among
from consensus_optax.weightings._cluster_mean import cluster_mean
from consensus_optax.weightings._cosine_filter import cosine_filter
from consensus_optax.weightings._keep_smallest_losses import keep_smallest_losses
from consensus_optax.weightings._l2_filter import l2_filter
from consensus_optax.weightings._mean import mean
from consensus_optax.weightings._neighbor_filter import neighbor_filter
from consensus_optax.weightings._normalized_mean import normalized_mean
from consensus_optax.weightings._sign_filter import sign_filter
from consensus_optax.weightings._span_hessian import span_hessian
from consensus_optax.weightings._subspace_weighting import subspace_weighting
from consensus_optax.weightings._trust_region_weighting import trust_region_weighting

__all__ = [
    "adasum",
    "after",
    "among",
    "cluster_mean",
    "cosine_filter",
    "keep_smallest_losses",
    "l2_filter",
    "mean",
    "neighbor_filter",
    "normalized_mean",
    "sign_filter",
    "span_hessian",
    "subspace_weighting",
    "trust_region_weighting",
]
