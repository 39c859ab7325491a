"""Any optax transformation, of every row by itself."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from consensus_optax import _check
from consensus_optax._rows.finite import cleared, finite_rows, spoiled
from consensus_optax._rows.outer_product import is_outer_product, materialize
from consensus_optax._rows.stack import as_rows
from consensus_optax._typing import Tree


def on_rows(
    transformation: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    r"""Applies an optax transformation to every row, as it is applied to an update.

    .. math:: g_i \leftarrow T(g_i)

    ``optax.clip(1.0)`` ahead of a reducer is an error where rows are factored, and
    ``optax.clip_by_global_norm(1.0)`` of arrays takes one norm of the whole stack;
    ``co.on_rows`` of them does to each row what they do to a gradient.

    Guarantees: row i of the result is T of row i alone, and of its parameters where T
    asks for them (``optax.add_decayed_weights``), in the dtypes that T gives.
    Edge cases: a row with a non-finite entry goes out as nan, whatever T makes of it,
    so that the reducer excludes and counts it. Leaves that carry no gradient pass. A
    transformation may count its steps (schedules do), once for all rows; one that
    remembers anything else is an error, since it would need a memory of every row:
    :func:`row_momentum` is that. Thresholds that change go around:
    ``optax.inject_hyperparams(lambda c: co.on_rows(optax.clip(c)))(schedule)``.

    Extra arguments of ``update`` reach the transformation as they are, for every row.

    Args:
      transformation: a stateless transformation, such as ``optax.clip(1.0)``,
        ``optax.centralize()`` or a chain of these.

    Returns:
      A row transformation, (B, \*shape) to (B, \*shape), ahead of a reducer in
      ``optax.chain``, with the state of the transformation.

    Raises:
      ValueError: ``transformation`` is none; in ``init``, it has a state other than
        integer counts; when traced, as the reducer does.

    Cost: rows are multiplied out, B arrays like the parameters, and stay so. What is a
    number for each row costs less, factored, by :func:`clip_examples` (for
    ``optax.clip_by_global_norm``), :func:`normalize_examples` and
    :func:`scale_examples` (for ``optax.scale``).

    Examples:
      >>> import jax.numpy as jnp, optax, consensus_optax as co
      >>> rule = optax.chain(co.on_rows(optax.clip(1.0)), co.mean())
      >>> rows, params = jnp.array([[0., 4.], [0.5, -0.5]]), jnp.zeros(2)
      >>> rule.update(rows, rule.init(params), params)[0].tolist()
      [0.25, 0.25]
    """
    if not isinstance(transformation, optax.GradientTransformation):
        _check.fail("transformation", "an optax transformation", transformation)
    inner = optax.with_extra_args_support(transformation)

    def init(params: Tree) -> Any:
        state = inner.init(params)
        flat, _ = jax.tree_util.tree_flatten_with_path(state)
        for path, leaf in flat:
            if jnp.ndim(leaf) or not jnp.issubdtype(jnp.result_type(leaf), jnp.integer):
                raise ValueError(
                    "`transformation` must have no state but counts, since it has one "
                    f"for all rows; got {jax.tree_util.keystr(path)} of shape "
                    f"{jnp.shape(leaf)} and {jnp.result_type(leaf)}. Place it after "
                    "the reducer, or see `co.row_momentum`."
                )
        return state

    def update(
        updates: Tree, state: Any, params: Tree | None = None, **extra: Any
    ) -> tuple[Tree, Any]:
        rows, dtype = as_rows(updates, params)
        if not rows:
            return updates, state
        finite = finite_rows(rows, dtype)
        flat, treedef = jax.tree.flatten(updates, is_leaf=is_outer_product)
        if jax.debug_nans.value:  # it would stop at what is made of such rows
            flat = [cleared(leaf, finite) for leaf in flat]
        moves = [jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in flat]

        def moving(tree: Tree) -> Tree:
            """Without the leaves that carry no gradient."""
            pairs = zip(treedef.flatten_up_to(tree), moves, strict=True)
            kept = [leaf if yes else optax.MaskedNode() for leaf, yes in pairs]
            return jax.tree.unflatten(treedef, kept)

        given = None if params is None else moving(params)

        def of_row(row: Tree) -> tuple[Tree, Any]:
            return inner.update(row, state, given, **extra)

        each = jax.vmap(of_row, out_axes=(0, None))  # counts are the same for all
        new_rows, new_state = each(materialize(moving(treedef.unflatten(flat))))
        new_rows = jax.tree.map(lambda leaf: spoiled(leaf, finite), new_rows)
        news = treedef.flatten_up_to(new_rows)
        kept = [
            new if yes else leaf
            for new, leaf, yes in zip(news, flat, moves, strict=True)
        ]
        return jax.tree.unflatten(treedef, kept), new_state

    return optax.GradientTransformationExtraArgs(init, update)
