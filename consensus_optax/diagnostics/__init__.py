"""Diagnostics: how rows agree, as numbers of their Gramian or of themselves.

Everything here is a pure function that works under ``jit`` (the plots and
:func:`check_per_example` aside); :func:`probe` keeps the numbers in a chain's state.
Imports everything below; no rule by name.
"""

from consensus_optax.diagnostics._agreement import leaf_names
from consensus_optax.diagnostics._check_per_example import check_per_example
from consensus_optax.diagnostics._coherence import coherence, gradient_diversity
from consensus_optax.diagnostics._cosines import (
    conflicting_share,
    cosine_quantiles,
    share_within,
)
from consensus_optax.diagnostics._effective_rows import effective_rows
from consensus_optax.diagnostics._explain import explain
from consensus_optax.diagnostics._gramian import gramian
from consensus_optax.diagnostics._influence import influence, under_adam
from consensus_optax.diagnostics._leaf_agreement import leaf_agreement
from consensus_optax.diagnostics._metrics import metrics
from consensus_optax.diagnostics._noise_scale import NoiseScale, noise_scale
from consensus_optax.diagnostics._plot import plot_agreement, plot_gramian
from consensus_optax.diagnostics._probe import ProbeState, probe
from consensus_optax.diagnostics._row_norms import row_norms
from consensus_optax.diagnostics._variance import gradient_variance

__all__ = [
    "NoiseScale",
    "ProbeState",
    "check_per_example",
    "coherence",
    "conflicting_share",
    "cosine_quantiles",
    "effective_rows",
    "explain",
    "gradient_diversity",
    "gradient_variance",
    "gramian",
    "influence",
    "leaf_agreement",
    "leaf_names",
    "metrics",
    "noise_scale",
    "plot_agreement",
    "plot_gramian",
    "probe",
    "row_norms",
    "share_within",
    "under_adam",
]
