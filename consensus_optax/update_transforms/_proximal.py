"""A pull back to where training began."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from consensus_optax import _check
from consensus_optax._rows import verbs
from consensus_optax._rows.trees import floating
from consensus_optax._typing import Threshold, Tree


class ProximalState(NamedTuple):
    """State of :func:`proximal`.

    Attributes:
      start: the parameters that ``init`` was given.
    """

    start: Tree


def proximal(mu: Threshold) -> optax.GradientTransformationExtraArgs:
    r"""FedProx's term: the gradient of a distance from the starting parameters.

    .. math:: g \leftarrow g + \mu (x - x_0), \qquad
        \text{as of } f(x) + \tfrac\mu2 \|x - x_0\|^2

    Ahead of a client's local optimizer, whose every round begins at the server's
    parameters: ``training.federated_round(loss, server, optax.chain(co.proximal(0.1),
    optax.sgd(0.5)))`` is FedProx. Many local steps then go less far from one another.

    Guarantees: mu = 0 changes nothing; the first step from the start is what it was.
    Edge cases: a leaf that is not floating is left alone. Where parameters are narrower
    than float32, what they have moved is known to their own rounding.

    Args:
      mu: >= 0: a number or an array.

    Returns:
      A transformation of updates.

    Raises:
      ValueError: ``mu`` is negative; when traced, ``params`` is missing.

    Cost: one copy of the parameters; clients of one ``vmap`` share it.

    References: Li et al., `Federated Optimization in Heterogeneous Networks
    <https://arxiv.org/abs/1812.06127>`_, 2020.

    Examples:
      >>> import jax.numpy as jnp
      >>> tx = proximal(0.5)
      >>> state = tx.init(jnp.array([1.0, 1.0]))
      >>> tx.update(jnp.zeros(2), state, jnp.array([1.0, 3.0]))[0].tolist()
      [0.0, 1.0]
    """
    _check.interval("mu", mu, 0, schedule=False)  # clients have no common step

    def init(params: Tree) -> ProximalState:
        copies = jax.tree.map(lambda p: jnp.array(p, copy=True), params)  # to donate
        return ProximalState(copies)

    def update(
        updates: Tree, state: Any, params: Tree | None = None, **extra: Any
    ) -> tuple[Tree, ProximalState]:
        del extra
        if params is None:
            raise ValueError(
                "`params` must be where the client is now; got None. Call "
                "`update(updates, state, params)`."
            )

        def pulled(leaf: Any, now: Any, start: Any) -> Any:
            if not floating(leaf):
                return leaf
            dtype = verbs.decision_dtype(leaf)
            moved = now.astype(dtype) - start.astype(dtype)
            pull = jnp.asarray(mu).astype(dtype) * moved
            return (leaf.astype(dtype) + pull).astype(leaf.dtype)

        return jax.tree.map(pulled, updates, params, state.start), state

    return optax.GradientTransformationExtraArgs(init, update)
