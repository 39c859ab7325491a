"""Row transformations: rows in, rows out, ahead of a reducer; and chains of both.

One method per file. Imports ``_rules``, ``_rows``, ``compressors`` and below.
"""

from consensus_optax.row_transforms._chain import chain
from consensus_optax.row_transforms._clip_examples import clip_examples
from consensus_optax.row_transforms._compressed import compressed
from consensus_optax.row_transforms._error_feedback import error_feedback
from consensus_optax.row_transforms._normalize_examples import normalize_examples
from consensus_optax.row_transforms._on_rows import on_rows
from consensus_optax.row_transforms._row_momentum import row_momentum
from consensus_optax.row_transforms._scale_examples import scale_examples

__all__ = [
    "chain",
    "clip_examples",
    "compressed",
    "error_feedback",
    "normalize_examples",
    "on_rows",
    "row_momentum",
    "scale_examples",
]
