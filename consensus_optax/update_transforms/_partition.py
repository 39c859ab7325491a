"""Different rules for different parameters, labelled by what they are."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import optax

from consensus_optax import _check
from consensus_optax._typing import Tree


def partition(
    transforms: Mapping[Hashable, optax.GradientTransformation],
    labels: Tree | Callable[[Tree], Tree],
) -> optax.GradientTransformationExtraArgs:
    r"""A transformation for each label: ``optax.partition``, of rows, too.

    .. math:: u_j = T_{l(j)}(g)_j

    for each leaf j with the label l(j). Labels that are a function, such as matrices
    and vectors by their number of axes, are those of the parameters. (That of
    ``optax.partition`` is called on what comes in: rows have one axis more, and where
    they are factored are no arrays.)

    Guarantees: each transformation gets the rows of its own parameters alone, so that
    one reducer in it compares these; the update is that of as many models.
    Edge cases: a row that is not finite is left out where it is not, and counts for
    other labels.

    Args:
      transforms: by label, all that follows: ``optax.chain(co.mean(),
        optax.adam(1e-3))``.
      labels: a tree like the parameters, or a prefix of it, or a function of the
        parameters that gives one.

    Returns:
      A transformation; its state is that of ``optax.partition``.

    Raises:
      ValueError: a label has no transformation; ``transforms`` are none; when traced,
        ``params`` is missing.

    Cost: that of the transformations.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, consensus_optax as co
      >>> kind = lambda tree: jax.tree.map(lambda p: "b" if p.ndim < 2 else "w", tree)
      >>> train = lambda rule: optax.chain(rule, optax.sgd(-1.0))
      >>> rules = {"b": train(co.mean()), "w": train(co.median())}
      >>> optimizer, params = partition(rules, kind), {"b": jnp.ones(1)}
      >>> rows = {"b": jnp.array([[0.], [0.], [3.]])}
      >>> optimizer.update(rows, optimizer.init(params), params)[0]["b"].tolist()
      [1.0]
    """
    if not isinstance(transforms, Mapping):
        _check.fail("transforms", "a dict of optax transformations", transforms)
    for label, transformation in transforms.items():
        _check.optimizer(f"transforms[{label!r}]", transformation)

    def of(params: Tree) -> optax.GradientTransformationExtraArgs:
        given = labels(params) if callable(labels) else labels
        return optax.partition(transforms, given)

    def init(params: Tree) -> Any:
        return of(params).init(params)

    def update(
        updates: Tree, state: Any, params: Tree | None = None, **extra: Any
    ) -> tuple[Tree, Any]:
        if params is None:
            raise ValueError(
                "`co.partition` needs `params`, which labels are of; got None. Call "
                "`update(rows, state, params)`."
            )
        return of(params).update(updates, state, params, **extra)

    return optax.GradientTransformationExtraArgs(init, update)
