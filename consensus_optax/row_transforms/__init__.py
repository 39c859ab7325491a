"""Row transformations: rows in, rows out, ahead of a reducer.

One method per file. Imports ``_running``, ``_rules``, ``_rows`` and below.
"""

from consensus_optax.row_transforms._clip_examples import clip_examples
from consensus_optax.row_transforms._normalize_examples import normalize_examples
from consensus_optax.row_transforms._on_rows import on_rows
from consensus_optax.row_transforms._row_momentum import row_momentum
from consensus_optax.row_transforms._scale_examples import scale_examples

__all__ = [
    "clip_examples",
    "normalize_examples",
    "on_rows",
    "row_momentum",
    "scale_examples",
]
