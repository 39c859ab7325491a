"""Training the same models with several rules, fairly, and telling what came out.

This is ``python -m consensus_optax compare`` and ``federated`` as functions; it needs
``pip install "consensus_optax[demo]"``. Imports everything else.
"""

from consensus_optax.comparison._client_tasks import (
    ClientTask,
    picture_clients,
    shakespeare_clients,
)
from consensus_optax.comparison._federate import Contestant, Federation, federate
from consensus_optax.comparison._federated_report import (
    federated_json,
    federated_plot,
    federated_table,
    save_federated_plot,
)
from consensus_optax.comparison._named_attacks import (
    NamedAttack,
    named_attacks,
    on_data,
    on_rows,
)
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
    "ClientTask",
    "Comparison",
    "Contestant",
    "Curves",
    "Estimate",
    "Federation",
    "NamedAttack",
    "caption",
    "compare",
    "difference",
    "estimate",
    "federate",
    "federated_json",
    "federated_plot",
    "federated_table",
    "final",
    "named_attacks",
    "on_data",
    "on_rows",
    "picture_clients",
    "plot",
    "relative_cost",
    "save_federated_plot",
    "save_plot",
    "seed_estimate",
    "shakespeare_clients",
    "solved_grids",
    "table",
    "to_json",
]
