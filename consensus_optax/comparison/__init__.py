"""Training the same models with several rules, fairly, and telling what came out.

This is ``python -m consensus_optax compare`` as functions; it needs
``pip install "consensus_optax[demo]"``. Imports everything else.
"""

from consensus_optax.comparison._plot import plot, save_plot
from consensus_optax.comparison._report import caption, table, to_json
from consensus_optax.comparison._result import (
    METRICS,
    PLAIN,
    Comparison,
    Curves,
    Estimate,
    difference,
    estimate,
    final,
    relative_cost,
    seed_estimate,
    solved_grids,
)
from consensus_optax.comparison._run import compare

__all__ = [
    "METRICS",
    "PLAIN",
    "Comparison",
    "Curves",
    "Estimate",
    "caption",
    "compare",
    "difference",
    "estimate",
    "final",
    "plot",
    "relative_cost",
    "save_plot",
    "seed_estimate",
    "solved_grids",
    "table",
    "to_json",
]
