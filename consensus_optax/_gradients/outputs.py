"""Rows of outputs: the Jacobian of a model by its examples and outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from consensus_optax._gradients.arguments import Argnums
from consensus_optax._gradients.names import kind_of, known_as
from consensus_optax._gradients.per_example import without_value
from consensus_optax._gradients.tasks import task_value_and_grad


def output_value_and_grad(
    fun: Callable[..., Any],
    argnums: Argnums = 0,
    *,
    batch_argnums: Argnums = 1,
    has_aux: bool = False,
    keep_batch_dim: bool = True,
    materialize: bool = False,
) -> Callable[..., Any]:
    """Like :func:`output_grad`, with the outputs.

    Args:
      fun: see :func:`output_grad`; so are all other arguments.
      argnums: what to differentiate.
      batch_argnums: which arguments have the example axis.
      has_aux: whether ``fun`` returns (outputs, aux).
      keep_batch_dim: whether ``fun`` sees a batch axis.
      materialize: whether to multiply all leaves out.

    Returns:
      A function of ``fun``'s arguments that gives (outputs, rows), or ((outputs, aux),
      rows): outputs (B K,), in the order of the rows; aux as of
      :func:`per_example_grad`.

    Examples:
      >>> import jax.numpy as jnp
      >>> x, w = jnp.array([[1., 0.], [0., 2.]]), jnp.ones(2)
      >>> outputs, rows = output_value_and_grad(lambda w, x: x @ w)(w, x)
      >>> outputs.tolist(), rows.tolist()
      ([1.0, 2.0], [[1.0, 0.0], [0.0, 2.0]])
    """

    @known_as(fun)
    def flat(*args: Any, **kwargs: Any) -> Any:
        returned = fun(*args, **kwargs)
        outputs = returned[0] if has_aux else returned
        if not hasattr(outputs, "dtype") or not jnp.issubdtype(
            outputs.dtype, jnp.floating
        ):
            raise ValueError(
                "Outputs must be one floating array; what `fun` returned is "
                f"{kind_of(outputs)}. A pair (outputs, aux) needs `has_aux=True`."
            )
        outputs = outputs.reshape(-1)
        return (outputs, returned[1]) if has_aux else outputs

    of_rows = task_value_and_grad(
        flat,
        argnums,
        batch_argnums=batch_argnums,
        has_aux=has_aux,
        keep_batch_dim=keep_batch_dim,
        group_size=1,
        materialize=materialize,
    )

    def value_and_rows(*args: Any, **kwargs: Any) -> Any:
        value, rows = of_rows(*args, **kwargs)
        outputs = (value[0] if has_aux else value).reshape(-1)
        return ((outputs, value[1]) if has_aux else outputs), rows

    return value_and_rows


def output_grad(
    fun: Callable[..., Any],
    argnums: Argnums = 0,
    *,
    batch_argnums: Argnums = 1,
    has_aux: bool = False,
    keep_batch_dim: bool = True,
    materialize: bool = False,
) -> Callable[..., Any]:
    r"""Gradients of a model's outputs: one row for each output of each example.

    .. math:: J_{iK + k} = \nabla_\theta\, f_k(\theta, x_i)

    What Gauss-Newton, natural gradients and tangent kernels are made of: with
    :func:`gauss_newton` a damped step for residuals, with ``diagnostics.gramian`` the
    empirical tangent kernel :math:`J J^\top`.

    Guarantees: the rows are ``jax.jacrev(fun)`` with the axes of examples and outputs
    joined, to rounding; they come as those of :func:`per_example_grad` do, as
    :class:`OuterProduct` where possible. An output must depend on its own example.
    Edge cases: an output that depends on no parameter has a zero row. There is no
    ``group_size`` and no ``num_rows``: a row is of one output of one example, and what
    is averaged over examples is a loss, for :func:`task_grad`.

    Args:
      fun: outputs of a batch, (B, ...) floating: ``fun(params, batch)``, called with
        one example at a time; with ``has_aux`` a pair (outputs, aux).
      argnums: argument or arguments to differentiate, as in ``jax.grad``.
      batch_argnums: argument or arguments whose leaves lead with the example axis.
      has_aux: whether ``fun`` returns (outputs, aux).
      keep_batch_dim: True: ``fun`` sees batches of one example; False: one example
        without a batch axis, and its outputs have none.
      materialize: True gives arrays only; False may leave outer products.

    Returns:
      A function of ``fun``'s arguments that gives rows: a tree like the differentiated
      argument with (B K, \*shape) leaves, or (rows, aux).

    Raises:
      ValueError: as :func:`task_grad`.

    Cost: the forward pass and K backward passes of each example.

    Examples:
      >>> import jax.numpy as jnp, consensus_optax as co
      >>> x, w = jnp.array([[1., 0.], [1., 2.]]), jnp.array([3., 1.])
      >>> residuals = lambda w, x: x @ w - jnp.array([2.])
      >>> values, rows = co.output_value_and_grad(residuals)(w, x)
      >>> rule = co.gauss_newton(1e-6)
      >>> step, _ = rule.update(rows, rule.init(w), w, values=values)
      >>> [round(float(y), 3) for y in residuals(w - step, x)]
      [0.0, 0.0]
    """
    value_and_grad = output_value_and_grad(
        fun,
        argnums,
        batch_argnums=batch_argnums,
        has_aux=has_aux,
        keep_batch_dim=keep_batch_dim,
        materialize=materialize,
    )

    return without_value(value_and_grad, has_aux)
