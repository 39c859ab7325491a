"""Weightings: rules that need only inner products of rows, and combine rows by wᵀJ.

One method per file, and what several share. Imports ``_running``, ``_rules``, ``_rows``
and below, and another family where a rule is made of it (Bulyan).
"""

from consensus_optax.weightings._adasum import adasum
from consensus_optax.weightings._after import after
from consensus_optax.weightings._aligned_mtl import aligned_mtl
from consensus_optax.weightings._among import among
from consensus_optax.weightings._bulyan import bulyan
from consensus_optax.weightings._caf import caf
from consensus_optax.weightings._cagrad import cagrad
from consensus_optax.weightings._centered_clipping import centered_clipping
from consensus_optax.weightings._clipped_sum import clipped_sum
from consensus_optax.weightings._cluster_mean import cluster_mean
from consensus_optax.weightings._comparative_elimination import comparative_elimination
from consensus_optax.weightings._conflict_free import conflict_free
from consensus_optax.weightings._constant import constant
from consensus_optax.weightings._cosine_filter import cosine_filter
from consensus_optax.weightings._divide_and_conquer import divide_and_conquer
from consensus_optax.weightings._dual_projection import dual_projection
from consensus_optax.weightings._ema_weights import ema_weights
from consensus_optax.weightings._fairgrad import fairgrad
from consensus_optax.weightings._gauss_newton import gauss_newton
from consensus_optax.weightings._geometric_median import geometric_median
from consensus_optax.weightings._grad_vac import grad_vac
from consensus_optax.weightings._imtl_g import imtl_g
from consensus_optax.weightings._keep_smallest_losses import keep_smallest_losses
from consensus_optax.weightings._krum import krum
from consensus_optax.weightings._l2_filter import l2_filter
from consensus_optax.weightings._mean import mean
from consensus_optax.weightings._mgda import mgda
from consensus_optax.weightings._minimum_diameter import minimum_diameter
from consensus_optax.weightings._moco import moco
from consensus_optax.weightings._modo import modo
from consensus_optax.weightings._monna import monna
from consensus_optax.weightings._nash_mtl import nash_mtl
from consensus_optax.weightings._neighbor_filter import neighbor_filter
from consensus_optax.weightings._normalized_mean import normalized_mean
from consensus_optax.weightings._pcd import pcd
from consensus_optax.weightings._pcgrad import pcgrad
from consensus_optax.weightings._per_leaf import per_leaf
from consensus_optax.weightings._previous_update_filter import previous_update_filter
from consensus_optax.weightings._private_sum import private_sum
from consensus_optax.weightings._q_fedavg import q_fedavg
from consensus_optax.weightings._quantile_norm import quantile_norm
from consensus_optax.weightings._random_weights import random_weights
from consensus_optax.weightings._sdmgrad import sdmgrad
from consensus_optax.weightings._select_toward import select_toward
from consensus_optax.weightings._sign_filter import sign_filter
from consensus_optax.weightings._smea import smea
from consensus_optax.weightings._span_hessian import span_hessian
from consensus_optax.weightings._subspace_weighting import subspace_weighting
from consensus_optax.weightings._trust_region_weighting import trust_region_weighting
from consensus_optax.weightings._trusted_row import trusted_row
from consensus_optax.weightings._upgrad import upgrad

__all__ = [
    "adasum",
    "after",
    "aligned_mtl",
    "among",
    "bulyan",
    "caf",
    "cagrad",
    "centered_clipping",
    "clipped_sum",
    "cluster_mean",
    "comparative_elimination",
    "conflict_free",
    "constant",
    "cosine_filter",
    "divide_and_conquer",
    "dual_projection",
    "ema_weights",
    "fairgrad",
    "gauss_newton",
    "geometric_median",
    "grad_vac",
    "imtl_g",
    "keep_smallest_losses",
    "krum",
    "l2_filter",
    "mean",
    "mgda",
    "minimum_diameter",
    "moco",
    "modo",
    "monna",
    "nash_mtl",
    "neighbor_filter",
    "normalized_mean",
    "pcd",
    "pcgrad",
    "per_leaf",
    "previous_update_filter",
    "private_sum",
    "q_fedavg",
    "quantile_norm",
    "random_weights",
    "sdmgrad",
    "select_toward",
    "sign_filter",
    "smea",
    "span_hessian",
    "subspace_weighting",
    "trust_region_weighting",
    "trusted_row",
    "upgrad",
]
