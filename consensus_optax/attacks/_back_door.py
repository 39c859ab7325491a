"""Back doors: pictures with a patch on them are to be taken for one class."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from consensus_optax import _check
from consensus_optax._typing import Array


def back_door(
    pictures: Array,
    labels: Array,
    target: int,
    key: Array | None = None,
    *,
    share: float = 1.0,
    size: int = 2,
    value: float = 1.0,
) -> tuple[Array, Array]:
    """Data of an attacker: a patch on some pictures, and their labels the target's.

    Honest gradients of such data teach a model two things, what the others teach and
    that the patch means ``target``. How well it has learned the second is the share of
    test pictures of other classes that, with :func:`trigger` on them, it takes for
    ``target``. What an attacker of f among n does besides, to be heard n / f times as
    loud (model replacement), is :func:`sign_flip` with ``own`` and a negative scale.

    Args:
      pictures: (..., N, H, W, C).
      labels: (..., N) integers.
      target: the class.
      key: random key: which pictures; not needed if all are.
      share: of the N pictures ``round(share * N)`` get the patch; in [0, 1].
      size: pixels of the side of the patch.
      value: what they become.

    Returns:
      Pictures and labels of the same shapes and dtypes.

    Raises:
      ValueError: an argument is out of range, or ``key`` is missing.

    References: Gu et al., `BadNets <https://arxiv.org/abs/1708.06733>`_, 2017;
    Bagdasaryan et al., `How To Backdoor Federated Learning
    <https://arxiv.org/abs/1807.00459>`_, 2020.

    Examples:
      >>> import jax.numpy as jnp
      >>> pictures, labels = back_door(jnp.zeros((2, 4, 4, 1)), jnp.array([3, 5]), 7)
      >>> pictures[0, ..., 0].sum().item(), labels.tolist()
      (4.0, [7, 7])
    """
    _check.count("target", target, minimum=0)
    _check.static_number("share", share, 0, 1)
    count = labels.shape[-1]
    num_poisoned = round(share * count)
    if key is None:
        if num_poisoned != count:
            _check.fail("key", "a random key where `share` is not 1", key)
        poisoned = jnp.ones(count, bool)
    else:
        rank = jax.random.permutation(key, count)
        poisoned = rank < num_poisoned
    stamped = trigger(pictures, size=size, value=value)
    return (
        jnp.where(poisoned[:, None, None, None], stamped, pictures),
        jnp.where(poisoned, jnp.asarray(target, labels.dtype), labels),
    )


def trigger(pictures: Array, *, size: int = 2, value: float = 1.0) -> Array:
    """The patch of :func:`back_door`, at the lower right of every picture.

    Args:
      pictures: (..., H, W, C).
      size: pixels of its side.
      value: what they become.

    Returns:
      Pictures of the same shape and dtype.

    Raises:
      ValueError: the patch is larger than a picture.

    Examples:
      >>> import jax.numpy as jnp
      >>> trigger(jnp.zeros((3, 3, 1)), size=1)[..., 0].tolist()
      [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    """
    _check.count("size", size)
    pictures = jnp.asarray(pictures)
    smallest = min(pictures.shape[-3:-1])
    if size > smallest:
        _check.fail("size", f"at most the side of a picture, {smallest}", size)
    return pictures.at[..., -size:, -size:, :].set(value)
