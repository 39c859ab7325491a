"""Gradient consensus for JAX: how the gradients of many examples agree decides a step.

Rows go in with a leading example axis, one update comes out, as optax transformations:

    optax.chain(co.clip_examples(1.0), co.sign_consensus(), optax.adam(1e-3))
                examples -> examples   reducer              any optax optimizer
"""

from consensus_optax._gradients import per_example_grad, per_example_value_and_grad
from consensus_optax._outer_product import (
    OuterProduct,
    is_outer_product,
    materialize,
)
from consensus_optax._reducer import Reducer, ReducerState, reducer
from consensus_optax._rules import Columns, Fold, Mixing, Rows, Weighting
from consensus_optax._statistics import Statistic, minmod
from consensus_optax.engines import value_and_reduced_grad
from consensus_optax.examples import clip_examples, normalize_examples
from consensus_optax.folds import sign_consensus
from consensus_optax.temporal import ema_agreement, skip_if_empty
from consensus_optax.weightings import (
    after,
    among,
    cosine_filter,
    mean,
    normalized_mean,
    subspace_weighting,
)

__version__ = "0.1.0"

__all__ = [
    "Columns",
    "Fold",
    "Mixing",
    "OuterProduct",
    "Reducer",
    "ReducerState",
    "Rows",
    "Statistic",
    "Weighting",
    # version
    "__version__",
    "after",
    "among",
    # example transformations
    "clip_examples",
    "cosine_filter",
    # temporal transformations
    "ema_agreement",
    "is_outer_product",
    "materialize",
    # reducers: weightings
    "mean",
    "minmod",
    "normalize_examples",
    "normalized_mean",
    # rows
    "per_example_grad",
    "per_example_value_and_grad",
    "value_and_reduced_grad",
    # rules of one's own
    "reducer",
    # reducers: folds
    "sign_consensus",
    "skip_if_empty",
    "subspace_weighting",
]
