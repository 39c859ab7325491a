"""Columns: rules that look at all rows of one coordinate at a time.

One method per file. Imports ``_running``, ``_rules``, ``_rows`` and below.
"""

from consensus_optax.columns._mean_around_median import mean_around_median
from consensus_optax.columns._median import median
from consensus_optax.columns._trimmed_mean import trimmed_mean
from consensus_optax.columns._winsorized_mean import winsorized_mean

__all__ = ["mean_around_median", "median", "trimmed_mean", "winsorized_mean"]
