"""Mixings: linear maps of the rows, made before a rule by :func:`after`.

One method per file. Imports ``_running``, ``_rules``, ``_rows`` and below.
"""

from consensus_optax.mixings._adaptive_clipping import adaptive_clipping
from consensus_optax.mixings._bucketing import bucketing
from consensus_optax.mixings._nearest_neighbor_mixing import nearest_neighbor_mixing

__all__ = ["adaptive_clipping", "bucketing", "nearest_neighbor_mixing"]
