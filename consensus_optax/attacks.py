"""Attacks: what dishonest rows may hold, for tests and benchmarks of robust rules.

Each attack on rows is a function of the honest rows, how many attackers there are and
a random key, to the rows of the attackers; they see everything that the honest rows
hold. Rows are trees of arrays with a leading axis, as everywhere:

    rows = attacks.join(honest, attacks.sign_flip(honest, 2, key))

:func:`label_flip` is one on data. Nothing here needs an optional package.
"""

from __future__ import annotations

import statistics
from typing import Any

import jax
import jax.numpy as jnp

from consensus_optax import _check
from consensus_optax._typing import Array, Tree


def join(honest: Tree, attackers: Tree) -> Tree:
    r"""All rows in one stack, honest ones first.

    Args:
      honest: rows, (h, \*shape) leaves.
      attackers: rows, (f, \*shape) leaves.

    Returns:
      Rows with h + f in every leaf.

    Examples:
      >>> import jax.numpy as jnp
      >>> join(jnp.zeros((4, 2)), jnp.ones((1, 2))).shape
      (5, 2)
    """
    return jax.tree.map(lambda x, y: jnp.concatenate([x, y]), honest, attackers)


def sign_flip(
    honest: Tree,
    num_byzantine: int,
    key: Array | None = None,
    *,
    scale: float = 1.0,
    own: bool = False,
) -> Tree:
    r"""Minus the honest mean, or minus the attackers' own gradients.

    Args:
      honest: rows, (h, \*shape) leaves.
      num_byzantine: f, how many attackers there are.
      key: not used.
      scale: factor.
      own: each attacker flips an honest row (the first, the second, ...), as one does
        that has honest data, instead of the mean.

    Returns:
      Rows with f in every leaf.

    Examples:
      >>> import jax.numpy as jnp
      >>> sign_flip(jnp.array([[1.], [3.]]), 1).tolist()
      [[-2.0]]
      >>> sign_flip(jnp.array([[1.], [3.]]), 1, own=True).tolist()
      [[-1.0]]
    """
    del key
    _check.count("num_byzantine", num_byzantine)
    if not own:
        return _from_mean(honest, num_byzantine, lambda mean, _: -scale * mean)

    def flip(leaf: Array) -> Array:
        chosen = jnp.arange(num_byzantine) % leaf.shape[0]
        return -scale * leaf[chosen]

    return jax.tree.map(flip, honest)


def inner_product_manipulation(
    honest: Tree, num_byzantine: int, key: Array | None = None, *, epsilon: float = 0.5
) -> Tree:
    r"""IPM: a small step against the honest mean, :math:`-\epsilon \bar g`.

    Small enough to pass for honest where rows vary, it can turn the inner product of
    the update with the true gradient negative (Xie et al., `Fall of Empires
    <https://arxiv.org/abs/1903.03936>`_, 2019).

    Args:
      honest: rows, (h, \*shape) leaves.
      num_byzantine: f, how many attackers there are.
      key: not used.
      epsilon: how far.

    Returns:
      Rows with f in every leaf, all equal.

    Examples:
      >>> import jax.numpy as jnp
      >>> inner_product_manipulation(jnp.array([[1.], [3.]]), 1).tolist()
      [[-1.0]]
    """
    del key
    return _from_mean(honest, num_byzantine, lambda mean, _: -epsilon * mean)


def a_little_is_enough(
    honest: Tree,
    num_byzantine: int,
    key: Array | None = None,
    *,
    num_deviations: float | None = None,
) -> Tree:
    r"""ALIE: :math:`\bar g - z \sigma` in every coordinate, within the honest spread.

    .. math:: z = \Phi^{-1}\left(\frac{n - f - s}{n - f}\right), \qquad
        s = \lfloor n / 2 \rfloor + 1 - f

    so that with s honest rows beyond them the attackers are a majority (Baruch et al.,
    `A Little Is Enough <https://arxiv.org/abs/1902.06156>`_, 2019). :math:`\sigma` is
    the standard deviation of the h = n - f honest rows (divisor h).

    Args:
      honest: rows, (h, \*shape) leaves.
      num_byzantine: f, how many attackers there are.
      key: not used.
      num_deviations: z; None for the formula, which gives 0 or less where few
        attackers face many honest rows.

    Returns:
      Rows with f in every leaf, all equal.

    Raises:
      ValueError: the attackers are a majority.

    Examples:
      >>> import jax.numpy as jnp
      >>> honest = jnp.array([[1.], [3.], [1.], [3.]])
      >>> a_little_is_enough(honest, 1, num_deviations=1.0).tolist()
      [[1.0]]
    """
    del key
    if num_deviations is None:
        num_honest = jax.tree.leaves(honest)[0].shape[0]
        num_deviations = deviations(num_honest + num_byzantine, num_byzantine)
    z = num_deviations
    return _from_mean(honest, num_byzantine, lambda mean, std: mean - z * std)


def deviations(num_rows: int, num_byzantine: int) -> float:
    """Standard deviations that :func:`a_little_is_enough` goes from the mean.

    Args:
      num_rows: n, all rows.
      num_byzantine: f, attackers among them.

    Returns:
      z, in standard deviations.

    Raises:
      ValueError: the attackers are a majority.

    Examples:
      >>> round(deviations(50, 12), 3)
      0.336
    """
    _check.count("num_byzantine", num_byzantine)
    supporters = num_rows // 2 + 1 - num_byzantine
    num_honest = num_rows - num_byzantine
    if not 0 < supporters < num_honest:
        _check.fail(
            "num_byzantine", f"a minority of the {num_rows} rows", num_byzantine
        )
    share = (num_honest - supporters) / num_honest
    return statistics.NormalDist().inv_cdf(share)


def gaussian(
    honest: Tree, num_byzantine: int, key: Array, *, scale: float = 200.0
) -> Tree:
    r"""Normal noise around zero.

    Args:
      honest: rows, (h, \*shape) leaves.
      num_byzantine: f, how many attackers there are.
      key: random key.
      scale: standard deviation of every entry.

    Returns:
      Rows with f in every leaf.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> gaussian(jnp.zeros((4, 2)), 3, jax.random.key(0)).shape
      (3, 2)
    """
    _check.count("num_byzantine", num_byzantine)
    leaves, treedef = jax.tree.flatten(honest)
    keys = jax.random.split(key, len(leaves))
    noise = [
        scale * jax.random.normal(k, (num_byzantine, *leaf.shape[1:]), leaf.dtype)
        for k, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(treedef, noise)


def mimic(
    honest: Tree, num_byzantine: int, key: Array | None = None, *, index: int = 0
) -> Tree:
    r"""Copies of one honest row, which then counts f + 1 times.

    No rule can call it dishonest; where honest rows differ it takes the update away
    from their mean (Karimireddy et al., `Byzantine-Robust Learning on Heterogeneous
    Datasets via Bucketing <https://arxiv.org/abs/2006.09365>`_, 2020).

    Args:
      honest: rows, (h, \*shape) leaves.
      num_byzantine: f, how many attackers there are.
      key: not used.
      index: which honest row is copied.

    Returns:
      Rows with f in every leaf, all equal.

    Examples:
      >>> import jax.numpy as jnp
      >>> mimic(jnp.array([[1.], [3.]]), 2, index=1).tolist()
      [[3.0], [3.0]]
    """
    del key
    _check.count("num_byzantine", num_byzantine)
    _check.count("index", index, minimum=0)
    chosen = jnp.full(num_byzantine, index)
    return jax.tree.map(lambda leaf: leaf[chosen], honest)


def infinite(
    honest: Tree,
    num_byzantine: int,
    key: Array | None = None,
    *,
    value: float = float("inf"),
) -> Tree:
    r"""One number everywhere, infinite unless told otherwise.

    Args:
      honest: rows, (h, \*shape) leaves.
      num_byzantine: f, how many attackers there are.
      key: not used.
      value: the number; 1e30 is finite and has no finite square in float32.

    Returns:
      Rows with f in every leaf.

    Examples:
      >>> import jax.numpy as jnp
      >>> infinite(jnp.zeros((4, 2)), 1).tolist()
      [[inf, inf]]
    """
    del key
    return _from_mean(honest, num_byzantine, lambda mean, _: jnp.full_like(mean, value))


def label_flip(labels: Array, num_classes: int) -> Array:
    """Class k becomes class ``num_classes`` - 1 - k: honest gradients of wrong data.

    Args:
      labels: integers in [0, num_classes).
      num_classes: number of classes.

    Returns:
      Integers of the same shape and dtype.

    Examples:
      >>> import jax.numpy as jnp
      >>> label_flip(jnp.array([0, 1, 9]), 10).tolist()
      [9, 8, 0]
    """
    _check.count("num_classes", num_classes)
    return num_classes - 1 - labels


def _from_mean(honest: Tree, num_byzantine: int, make: Any) -> Tree:
    """Equal rows made of the mean and standard deviation of every entry."""
    _check.count("num_byzantine", num_byzantine)

    def rows(leaf: Array) -> Array:
        row = make(leaf.mean(0), leaf.std(0)).astype(leaf.dtype)
        return jnp.broadcast_to(row, (num_byzantine, *row.shape))

    return jax.tree.map(rows, honest)
