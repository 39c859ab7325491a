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
from consensus_optax.diagnostics import check_per_example, probe
from consensus_optax.examples import clip_examples, normalize_examples, row_momentum
from consensus_optax.folds import (
    graddrop,
    sand_mask,
    sign_consensus,
    sign_vote,
    signal_to_noise,
)
from consensus_optax.temporal import (
    ema_agreement,
    median_of_three_steps,
    skip_if_empty,
    temporal_and_mask,
)
from consensus_optax.weightings import (
    adasum,
    after,
    among,
    cluster_mean,
    cosine_filter,
    keep_smallest_losses,
    l2_filter,
    mean,
    neighbor_filter,
    normalized_mean,
    sign_filter,
    span_hessian,
    subspace_weighting,
    trust_region_weighting,
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
    "adasum",
    "after",
    "among",
    "check_per_example",
    # example transformations
    "clip_examples",
    "cluster_mean",
    "cosine_filter",
    # temporal transformations
    "ema_agreement",
    "graddrop",
    "is_outer_product",
    "keep_smallest_losses",
    "l2_filter",
    "materialize",
    # reducers: weightings
    "mean",
    "median_of_three_steps",
    "minmod",
    "neighbor_filter",
    "normalize_examples",
    "normalized_mean",
    # rows
    "per_example_grad",
    "per_example_value_and_grad",
    "probe",
    # rules of one's own
    "reducer",
    "row_momentum",
    "sand_mask",
    # reducers: folds
    "sign_consensus",
    "sign_filter",
    "sign_vote",
    "signal_to_noise",
    "skip_if_empty",
    "span_hessian",
    "subspace_weighting",
    "temporal_and_mask",
    "trust_region_weighting",
]
