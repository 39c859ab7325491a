"""Weightings: rules that need only inner products of rows, and combine rows by wᵀJ."""

from consensus_optax.weightings._adasum import adasum
from consensus_optax.weightings._after import after
from consensus_optax.weightings._among import among
from consensus_optax.weightings._bulyan import bulyan
from consensus_optax.weightings._centered_clipping import centered_clipping
from consensus_optax.weightings._cluster_mean import cluster_mean
from consensus_optax.weightings._comparative_elimination import comparative_elimination
from consensus_optax.weightings._cosine_filter import cosine_filter
from consensus_optax.weightings._divide_and_conquer import divide_and_conquer
from consensus_optax.weightings._geometric_median import geometric_median
from consensus_optax.weightings._keep_smallest_losses import keep_smallest_losses
from consensus_optax.weightings._krum import krum
from consensus_optax.weightings._l2_filter import l2_filter
from consensus_optax.weightings._mean import mean
from consensus_optax.weightings._minimum_diameter import minimum_diameter
from consensus_optax.weightings._neighbor_filter import neighbor_filter
from consensus_optax.weightings._normalized_mean import normalized_mean
from consensus_optax.weightings._sign_filter import sign_filter
from consensus_optax.weightings._span_hessian import span_hessian
from consensus_optax.weightings._subspace_weighting import subspace_weighting
from consensus_optax.weightings._trust_region_weighting import trust_region_weighting
from consensus_optax.weightings._trusted_row import trusted_row

__all__ = [
    "adasum",
    "after",
    "among",
    "bulyan",
    "centered_clipping",
    "cluster_mean",
    "comparative_elimination",
    "cosine_filter",
    "divide_and_conquer",
    "geometric_median",
    "keep_smallest_losses",
    "krum",
    "l2_filter",
    "mean",
    "minimum_diameter",
    "neighbor_filter",
    "normalized_mean",
    "sign_filter",
    "span_hessian",
    "subspace_weighting",
    "trust_region_weighting",
    "trusted_row",
]
