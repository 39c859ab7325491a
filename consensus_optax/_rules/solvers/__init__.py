"""Small convex problems on a Gramian [B, B], in pure JAX.

A bounded number of steps, no external solver and no fall-back: every solution comes
with its residual, and with whether that is small. Gramians are brought to unit scale
first, so residuals have no units. Gradients do not flow through a solver: what a rule
decides is a constant to differentiation.

G is symmetric and positive semidefinite up to rounding; rows and columns of absent
rows are 0.
"""

from consensus_optax._rules.solvers._cone import (
    Kept,
    dual_cone,
    is_left_over,
    kept,
    nonnegative,
)
from consensus_optax._rules.solvers._fair import fair_division
from consensus_optax._rules.solvers._ridge import ridge
from consensus_optax._rules.solvers._simplex import length_of, over_simplex
from consensus_optax._rules.solvers._solution import (
    Solution,
    SolverState,
    cancels,
    cosines,
    not_better,
    product,
    proven,
    ratio,
    solution,
    unsolved,
)
from consensus_optax._rules.solvers._stationary import stationary_on_simplex

__all__ = [
    "Kept",
    "Solution",
    "SolverState",
    "cancels",
    "cosines",
    "dual_cone",
    "fair_division",
    "is_left_over",
    "kept",
    "length_of",
    "nonnegative",
    "not_better",
    "over_simplex",
    "product",
    "proven",
    "ratio",
    "ridge",
    "solution",
    "stationary_on_simplex",
    "unsolved",
]
