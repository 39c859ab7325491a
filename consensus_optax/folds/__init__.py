"""Folds: statistics of rows that merge in any order, in one pass and O(P) memory.

One method per file. Imports ``_running``, ``_rules``, ``_rows`` and below.
"""

from consensus_optax.folds._graddrop import graddrop
from consensus_optax.folds._sand_mask import sand_mask
from consensus_optax.folds._scale_by_example_moments import scale_by_example_moments
from consensus_optax.folds._sign_consensus import sign_consensus
from consensus_optax.folds._sign_vote import sign_vote
from consensus_optax.folds._signal_to_noise import signal_to_noise

__all__ = [
    "graddrop",
    "sand_mask",
    "scale_by_example_moments",
    "sign_consensus",
    "sign_vote",
    "signal_to_noise",
]
