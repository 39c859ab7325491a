"""What a compressor is: a pure pair of functions, and what is known of their error."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from consensus_optax import _check
from consensus_optax._rows.outer_product import Factored
from consensus_optax._rows.trees import arrays_of, floating_leaves
from consensus_optax._typing import Array, Tree

Shape = tuple[int, ...]


class Compressor(NamedTuple):
    r"""A lossy code of one array: what is sent, and what is made of it.

    Attributes:
      compress: (array, key) to the message, a tree of arrays whose shapes and dtypes
        depend on the array's shape alone. Computed in float32, whatever the dtype.
      decompress: (message, shape, key) to the array in float32. The same key: who gets
        a message can make it of the same seed, so what is drawn is not sent.
      key: random key that keys of messages are folded from; None: nothing is drawn.
      contraction: shape to the delta of :math:`E \|x - C(x)\|^2 \le (1 - \delta)
        \|x\|^2`, which error feedback needs; 0 for a shape of which there is none,
        None where there is none of any.
      variance: shape to the omega of :math:`E C(x) = x, E \|x - C(x)\|^2 \le \omega
        \|x\|^2`; None where C is biased.
      largest: the c < 1 of :math:`\|x - C(x)\|_\infty \le c \|x\|_\infty` on every
        array, which serves error feedback as well; None where there is none.
      is_sparse: whether entries are left out, which are zeros to who gets the rest.
      factor: optional (rows, keys) to products: for codes whose message is factors,
        what is made of a leaf of rows, never multiplied out.
      text: how it prints.

    Examples:
      >>> import jax.numpy as jnp, consensus_optax as co
      >>> code = co.compressors.top_k(0.5)
      >>> message = code.compress(jnp.array([1., -3., 2., 0.]), None)
      >>> code.decompress(message, (4,), None).tolist()
      [0.0, -3.0, 2.0, 0.0]
      >>> code.num_bytes({"w": jnp.zeros(4)}), code.contraction((4,))
      (10, 0.5)
    """

    compress: Callable[[Array, Any], Any]
    decompress: Callable[[Any, Shape, Any], Array]
    key: Any = None
    contraction: Callable[[Shape], float] | None = None
    variance: Callable[[Shape], float] | None = None
    largest: float | None = None
    is_sparse: bool = False
    factor: Callable[[Array | Factored, Any], Array | Factored] | None = None
    text: str = "Compressor(...)"

    def __repr__(self) -> str:
        """The call that made it."""
        return self.text

    def num_bytes(self, params: Tree) -> int:
        """Bytes of the messages of one row, of rows for these parameters.

        Args:
          params: a tree of arrays, or of their shapes and dtypes.

        Returns:
          The sum of the sizes of what ``compress`` makes of every floating leaf.
        """
        leaves = floating_leaves(arrays_of(params))
        return sum(message_bytes(self, leaf.shape, leaf.dtype) for leaf in leaves)


def message_bytes(compressor: Compressor, shape: Shape, dtype: Any) -> int:
    """Bytes of the message of one array."""
    given = jax.ShapeDtypeStruct(shape, dtype), compressor.key
    message = jax.eval_shape(compressor.compress, *given)
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(message))


def checked_compressor(name: str, given: Any) -> Compressor:
    """A compressor, or an error that says so."""
    if not isinstance(given, Compressor):
        _check.fail(name, "a compressor, such as `co.compressors.top_k(0.01)`", given)
    return given


def keys_of_rows(compressor: Compressor, step: Array, index: Array) -> Array | None:
    """A key for every row at a step, by the number of the row among all rows."""
    if compressor.key is None:
        return None
    at_step = jax.random.fold_in(compressor.key, step)
    return jax.vmap(jax.random.fold_in, (None, 0))(at_step, index)


def keys_of_leaf(keys: Array | None, leaf: int) -> Array | None:
    """The keys of rows for one of their leaves."""
    if keys is None:
        return None
    return jax.vmap(jax.random.fold_in, (0, None))(keys, leaf)


def count_of(fraction: float, size: int) -> int:
    """How many entries a share of them is, one at least if there is any."""
    return min(size, max(1, math.ceil(fraction * size)))


def flat32(array: Array) -> Array:
    """All entries in float32."""
    return array.astype(jnp.float32).reshape(-1)
