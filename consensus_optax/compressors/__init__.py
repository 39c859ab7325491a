"""Compressors: lossy codes of an array in few bytes, for rows and for the wire.

One method per file: a pure pair, ``compress`` and ``decompress``. They know neither
reducers nor devices: ``co.compressed`` and ``co.error_feedback`` apply them to rows,
``co.sharded(..., wire=...)`` to what devices send. Imports ``_rows`` and below.
"""

from consensus_optax.compressors._bucketed import bucketed
from consensus_optax.compressors._compressor import Compressor
from consensus_optax.compressors._low_rank import low_rank
from consensus_optax.compressors._natural import natural
from consensus_optax.compressors._random_k import random_k
from consensus_optax.compressors._scaled_sign import scaled_sign
from consensus_optax.compressors._stochastic_quantization import (
    stochastic_quantization,
)
from consensus_optax.compressors._top_k import top_k

__all__ = [
    "Compressor",
    "bucketed",
    "low_rank",
    "natural",
    "random_k",
    "scaled_sign",
    "stochastic_quantization",
    "top_k",
]
