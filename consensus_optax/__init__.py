"""Gradient consensus for JAX: how the gradients of many examples agree decides a step.

Rows go in with a leading example axis, one update comes out, as optax transformations:

    optax.chain(co.clip_examples(1.0), co.sign_consensus(), optax.adam(1e-3))
                examples -> examples   reducer              any optax optimizer

Each family of methods lists its names in its own folder; they are all here as well.
"""

from typing import TYPE_CHECKING, NoReturn

from consensus_optax import (
    columns,
    compressors,
    diagnostics,
    engines,
    federated,
    folds,
    mixings,
    privacy,
    row_transforms,
    scalarizers,
    update_transforms,
    weightings,
)
from consensus_optax._gradients.examples import example_keys
from consensus_optax._gradients.outputs import output_grad, output_value_and_grad
from consensus_optax._gradients.per_example import (
    per_example_grad,
    per_example_value_and_grad,
)
from consensus_optax._gradients.tasks import task_grad, task_value_and_grad
from consensus_optax._gradients.worker import worker_grad, worker_value_and_grad
from consensus_optax._rows.outer_product import (
    OuterProduct,
    is_outer_product,
    materialize,
)
from consensus_optax._rows.statistics import Statistic, minmod
from consensus_optax._rules.kinds import Columns, Fold, Mixing, Roster, Weighting
from consensus_optax._running.reducer import Reducer, ReducerState, reducer
from consensus_optax.columns import *  # noqa: F403
from consensus_optax.diagnostics import check_per_example, explain, metrics, probe
from consensus_optax.engines import *  # noqa: F403
from consensus_optax.folds import *  # noqa: F403
from consensus_optax.mixings import *  # noqa: F403
from consensus_optax.row_transforms import *  # noqa: F403
from consensus_optax.update_transforms import *  # noqa: F403
from consensus_optax.weightings import *  # noqa: F403

__version__ = "0.1.0"

__all__ = [
    # rows
    "per_example_grad",
    "per_example_value_and_grad",
    "example_keys",
    "output_grad",
    "output_value_and_grad",
    "task_grad",
    "task_value_and_grad",
    "OuterProduct",
    "is_outer_product",
    "materialize",
    "worker_grad",
    "worker_value_and_grad",
    "check_per_example",
    "explain",
    "diagnostics",
    "metrics",
    "federated",
    "probe",
    "privacy",
    "compressors",
    "scalarizers",
    # rules of one's own
    "reducer",
    "Reducer",
    "ReducerState",
    "Fold",
    "Columns",
    "Weighting",
    "Mixing",
    "Statistic",
    "Roster",
    "minmod",
    "__version__",
]
__all__ += columns.__all__
__all__ += engines.__all__
__all__ += folds.__all__
__all__ += mixings.__all__
__all__ += row_transforms.__all__
__all__ += update_transforms.__all__
__all__ += weightings.__all__

if not TYPE_CHECKING:  # to a type checker it would say that there is every name

    def __getattr__(name: str) -> NoReturn:
        """What a name that is not there may have meant."""
        missing = f"module 'consensus_optax' has no attribute {name!r}"
        if name.startswith("_"):
            raise AttributeError(missing)
        from consensus_optax._registry import suggestion  # once it is asked for

        raise AttributeError(f"{missing}; {suggestion(name)}".rstrip("; "))
