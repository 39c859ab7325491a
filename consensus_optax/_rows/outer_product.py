"""A row that has not been multiplied out: the last contraction of a gradient, kept."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec

from consensus_optax._rows.explicit import automatic, spec_of
from consensus_optax._rows.seal import MISSING, is_seal, sealed
from consensus_optax._rows.sums import SumOfProducts, parts_of
from consensus_optax._typing import Array

if TYPE_CHECKING:
    from typing_extensions import TypeIs

Step = tuple[str, tuple[int, ...]]


@functools.partial(
    sealed,
    data_fields=["left", "right"],
    meta_fields=["row_shape", "steps", "dtype", "precision", "spec"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class OuterProduct:
    r"""Rows :math:`g_i = \sum_t a_{it} \otimes d_{it}` of one parameter, as factors.

    The gradient of almost every large parameter ends in a contraction of something
    from the forward pass with something from the backward pass. Its two operands are
    B T (M + N) numbers, its result B M N: what needs only sums, norms or inner
    products of rows never has to form it.

    Attributes:
      left: the factors a, shape (B, T, M); or (B, T) integers, for rows of an M-row
        table that were looked up: a_it is then one-hot, and no factor where the integer
        is not in [0, M).
        Rows of L layers, as ``lax.scan`` over layers makes them: (B, L, T, M).
        Where all rows share their left factor, as those of several losses of one batch
        do, it is (1, ...), until a tree function takes the leaf apart.
      right: the factors d, shape (B, T, N) or (B, L, T, N).
      row_shape: shape in which the contraction leaves one row, with M x N entries, or
        L x M x N, those of a layer together.
      steps: transpositions and reshapes from ``row_shape`` to the parameter's shape.
      dtype: dtype of the materialized rows.
      precision: precision of the contraction in the model's own backward pass.
      spec: mesh axes that each axis of the parameter's shape is cut along; what is
        multiplied out is cut so if they are explicit.
      seal: None, or what came out of a tree function in the place of the seal that
        went in: see below. It is made, not given.

    Guarantees: ``materialize()`` equals the gradient that ``jax.vmap(jax.grad(fun))``
    computes, to rounding. The object is a pytree, so it crosses ``jit``, ``vmap``,
    ``scan``, ``shard_map`` and ``device_put``. Its children are the factors and a seal,
    ``(B, *parameter.shape)`` random keys without bits: no memory and no time.
    What selects or moves rows acts on all three and is right: ``x[:4]``, ``x[indices]``
    and ``jnp.concatenate`` along the example axis, in ``jax.tree.map``. What would
    calculate with the factors, such as ``optax.scale`` or ``x.mean(0)``, raises, since
    JAX does not calculate with keys; a seal of another shape is refused by reducers and
    by ``materialize``.
    Edge cases: JAX does fill, sort out by ``jnp.where`` and compare keys; so
    ``optax.set_to_zero`` is right, and ``jnp.ones_like`` and ``optax.zero_nans`` act on
    factors: multiply out before them. To ``jax_debug_key_reuse`` a selection of rows is
    a use of keys, and a second one, outside of ``jit``, is reported.

    Examples:
      >>> import jax.numpy as jnp
      >>> a, d = jnp.array([[[1., 2.]]]), jnp.array([[[3., 5.]]])
      >>> leaf = OuterProduct(a, d, row_shape=(2, 2))
      >>> leaf.shape
      (1, 2, 2)
      >>> leaf.materialize()[0].tolist()
      [[3.0, 5.0], [6.0, 10.0]]
      >>> leaf + 1.0  # doctest: +ELLIPSIS
      Traceback (most recent call last):
      TypeError: ...a reducer is missing here...
    """

    left: Array
    right: Array
    row_shape: tuple[int, ...]
    steps: tuple[Step, ...] = ()
    dtype: Any = np.dtype("float32")
    precision: Any = None
    spec: tuple[Any, ...] = ()
    seal: Any = dataclasses.field(default=None, init=False, repr=False)

    @property
    def is_intact(self) -> bool:
        """Whether the factors are still those of these rows, as the seal tells."""
        if self.seal is None:  # never taken apart
            return True
        shape = getattr(self.right, "shape", ())
        sides = self.left.shape[: len(shape) - 1]
        if len(shape) not in (3, 4) or sides not in (shape[:-1], (1, *shape[1:-1])):
            return False
        size = math.prod(shape[1:-2]) * math.prod(self.sides[1:])
        return size == math.prod(self.row_shape) and is_seal(self.seal, self.shape)

    @property
    def is_shared(self) -> bool:
        """Whether all rows, which are several, have one left factor."""
        left, right = (getattr(x, "shape", ())[:1] for x in (self.left, self.right))
        return left == (1,) != right

    @property
    def factors(self) -> tuple[Array, Array]:
        """Both factors of every row, (B, ...), also where rows share the left one."""
        if not self.is_shared:
            return self.left, self.right
        shape: Any = (self.right.shape[0], *self.left.shape[1:])
        if isinstance(self.left, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(shape, self.left.dtype), self.right  # pyrefly: ignore[bad-return]
        return jnp.broadcast_to(self.left, shape), self.right

    @property
    def is_one_array(self) -> bool:
        """Whether every row is the same array times a number of its own."""
        one = self.right.shape[-2:] == (1, 1)
        return one and self.is_shared and not self.is_look_up

    @property
    def held(self) -> list[Array]:
        """The factors as they are held."""
        return [self.left, self.right]

    @property
    def is_look_up(self) -> bool:
        """Whether ``left`` holds indices."""
        return self.left.ndim < self.right.ndim

    @property
    def num_layers(self) -> int | None:
        """L, or None where there is no axis of layers."""
        return self.right.shape[1] if self.right.ndim == 4 else None

    @property
    def sides(self) -> tuple[int, int, int]:
        """T, M and N."""
        terms, n = self.right.shape[-2:]
        m = self.row_shape[0] if self.is_look_up else self.left.shape[-1]
        return terms, m, n

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the materialized rows, ``(B, *parameter.shape)``."""
        return (self.right.shape[0], *row_shapes(self)[-1])

    @property
    def ndim(self) -> int:
        """Number of axes of the materialized rows."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of entries of the materialized rows."""
        return math.prod(self.shape)

    def materialize(self) -> Array:
        """The rows multiplied out, shape ``(B, *parameter.shape)`` and ``dtype``.

        Raises:
          ValueError: when traced, the leaf went through a tree function that did
            something else than to select or move rows.
        """
        if not self.is_intact:
            raise ValueError(MISSING)

        def multiply(left: Array, right: Array) -> Array:
            row = lambda a, d: restored(self, contract(self, a, d))
            return over_rows(row, left, right).astype(self.dtype)

        spec = PartitionSpec(spec_of(self.right)[0], *self.spec)
        return automatic(multiply, (self.left, self.right), spec)

    def __getitem__(self, rows: Any) -> OuterProduct:
        """Several rows: a slice, or indices (B',)."""
        taken = jax.tree.map(lambda child: child[rows], self)
        if not taken.is_intact:
            raise TypeError(f"`[{rows}]` selects no rows (B', ...). {MISSING}")
        return taken


Factored = OuterProduct | SumOfProducts  # rows that are not multiplied out


def over_rows(function: Callable[..., Array], left: Array, right: Array) -> Array:
    """A function of both factors of one row, of all rows, which may share the left."""
    if left.shape[0] == 1 != right.shape[0]:
        return jax.vmap(functools.partial(function, left[0]))(right)
    return jax.vmap(function)(left, right)


def contract(leaf: OuterProduct, a: Array, d: Array) -> Array:
    """The sum of outer products, (T, M) or (T,) and (T, N) to (M, N).

    Of layers (L, T, M) and (L, T, N) to (L, M, N).
    """
    if d.ndim == 3:
        return jax.vmap(lambda *both: contract(leaf, *both))(a, d)
    dtype = jnp.float64 if leaf.dtype == jnp.float64 else jnp.float32
    if a.ndim == 1:
        return jax.ops.segment_sum(d.astype(dtype), a, leaf.row_shape[0])
    if a.shape[0] == 1:  # a product of two vectors; a matmul of depth one is slow
        return a[0].astype(dtype)[:, None] * d[0].astype(dtype)[None, :]
    return lax.dot_general(
        a,
        d,
        (((0,), (0,)), ((), ())),
        precision=leaf.precision,
        preferred_element_type=dtype,
    )


def restored(leaf: Factored, matrix: Array) -> Array:
    """Brings an (M, N) matrix, say a combination of rows, to parameter shape.

    Of layers all matrices together, (L, M, N).
    """
    first = parts_of(leaf)[0]
    out = matrix.reshape(first.row_shape)
    for name, argument in first.steps:
        transposed = name == "transpose"
        out = out.transpose(argument) if transposed else out.reshape(argument)
    return out


def row_shapes(leaf: OuterProduct) -> list[tuple[int, ...]]:
    """Shapes of one row before each step, and after all of them."""
    shapes = [leaf.row_shape]
    for name, argument in leaf.steps:
        row = shapes[-1]
        transposed = name == "transpose"
        shapes += [tuple(row[i] for i in argument) if transposed else argument]
    return shapes


def is_outer_product(leaf: Any) -> TypeIs[Factored]:
    """True for an :class:`OuterProduct`: the ``is_leaf`` of any map over rows.

    And for a sum of several, which has the same ``shape``, ``dtype``, ``materialize()``
    and ``[rows]``.

    Args:
      leaf: anything.

    Returns:
      Whether the object is a lazily factored leaf.

    Examples:
      >>> is_outer_product(1.0)
      False
    """
    return isinstance(leaf, Factored)


def materialize(rows: Any) -> Any:
    """Replaces every lazily factored leaf of a tree by the array it stands for.

    Args:
      rows: tree of arrays and :class:`OuterProduct` leaves.

    Returns:
      The tree with arrays only, each ``(B, *parameter.shape)``.

    Examples:
      >>> import jax.numpy as jnp
      >>> materialize({"w": jnp.ones((2, 3))})["w"].shape
      (2, 3)
    """
    multiply = lambda leaf: leaf.materialize() if is_outer_product(leaf) else leaf
    return jax.tree.map(multiply, rows, is_leaf=is_outer_product)
