"""What every row would do to a loss whose gradient is known."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec

from consensus_optax import _check
from consensus_optax._rows import verbs
from consensus_optax._rows.explicit import automatic
from consensus_optax._rows.stack import as_stack, check_reduced
from consensus_optax._rows.trees import arrays_of
from consensus_optax._typing import Array, Tree


def influence(rows: Tree, target: Tree) -> Array:
    r"""Inner products of rows with a target: who pulls its way, and how far.

    .. math:: s_i = \langle g_i, t \rangle

    With t the gradient of a validation loss, a step of ``sgd(lr)`` on row i alone
    lowers that loss by :math:`lr\, s_i`, to first order. Summed over steps, times the
    learning rates and the shares that rows have in each step, this is the first-order
    in-run Shapley value of an example, and TracIn's score.

    Guarantees: linear in rows and target; float32 sums at least; a row is never
    multiplied out where it is factored.
    Edge cases: a row with a non-finite entry has a non-finite number, and no other row
    is touched.

    Args:
      rows: tree of (B, \*shape) leaves, of :func:`per_example_grad`.
      target: tree like the parameters: a gradient, an update, what :func:`under_adam`
        makes of one.

    Returns:
      (B,).

    Raises:
      ValueError: the trees differ, or ``target`` has rows itself.

    Cost: one matrix-vector product with the rows' factors; no Gramian.

    References: Pruthi et al., `Estimating Training Data Influence by Tracing Gradient
    Descent <https://arxiv.org/abs/2002.08484>`_, 2020; Wang et al., `Data Shapley in
    One Training Run <https://arxiv.org/abs/2406.11011>`_, 2024.

    Examples:
      >>> import jax, jax.numpy as jnp, consensus_optax as co
      >>> loss = lambda w, x: 0.5 * jnp.mean((w - x) ** 2)
      >>> w, x = jnp.array(0.), jnp.array([-1., 2., 3.])
      >>> rows = co.per_example_grad(loss)(w, x)
      >>> influence(rows, jax.grad(loss)(w, jnp.array([1.]))).tolist()
      [-1.0, 2.0, 3.0]
    """
    if target is None:
        _check.fail("target", "a tree like the parameters", None)
    target = arrays_of(target)
    stack = as_stack(rows, target)
    if not stack.leaves:
        raise ValueError("`rows` must have a floating leaf; got none")

    def products(leaves: list[Any], directions: list[Array]) -> Array:
        wide = [direction.astype(stack.dtype) for direction in directions]
        pairs = zip(leaves, wide, strict=True)
        parts = [verbs.inner_products(leaf, each) for leaf, each in pairs]
        return sum(parts[1:], parts[0])

    given = stack.leaves, list(stack.params)
    return automatic(products, given, PartitionSpec())


def under_adam(target: Tree, state: Any, b2: float = 0.999, eps: float = 1e-8) -> Tree:
    r"""A target as Adam's next step sees it: divided by the root of second moments.

    .. math:: t \leftarrow t \,\Big/\, \Big(\sqrt{v / (1 - \beta_2^k)}
        + \epsilon\Big)

    so that :func:`influence` speaks of a step of Adam instead of one of SGD, with
    moments as they are and row i's own share in v left aside.

    Args:
      target: tree like the parameters.
      state: an optimizer's state with one ``nu`` and ``count``: that of ``optax.adam``
        or of a chain around it.
      b2: decay of the second moment.
      eps: what is added to its root.

    Returns:
      A tree like the target, float32 at least.

    Raises:
      ValueError: the state has no ``nu``, or is of other parameters.

    Cost: one pass over the parameters.

    References: Xia et al., `LESS <https://arxiv.org/abs/2402.04333>`_, 2024, which uses
    the whole step; what is linear in the row is kept here.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> adam, w = optax.scale_by_adam(), jnp.zeros(2)
      >>> _, state = adam.update(jnp.array([3., 4.]), adam.init(w))
      >>> [round(float(x), 3) for x in under_adam(jnp.array([6., 6.]), state)]
      [2.0, 1.5]
    """
    moments = optax.tree.get(state, "nu")
    count = optax.tree.get(state, "count")
    if moments is None or count is None:
        raise ValueError(
            "`state` must hold Adam's second moments, one `nu` and `count`; got "
            f"{type(state).__name__}"
        )
    check_reduced(target, moments)

    def divided(leaf: Any, moment: Any) -> Any:
        wide = verbs.decision_dtype(leaf)
        steps = count.astype(wide)
        mean = moment.astype(wide) / (1 - jnp.asarray(b2, wide) ** steps)
        # before the first step there is no moment, and nothing to divide by
        root = jnp.where(count > 0, jnp.sqrt(mean) + jnp.asarray(eps, wide), 1)
        return leaf.astype(wide) / root

    return jax.tree.map(divided, target, moments)
