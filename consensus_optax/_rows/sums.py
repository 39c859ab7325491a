"""Rows that are sums of products of several kinds, each kept as it is.

A table that is looked up and multiplied by as well has rows of which one part is
one-hot and the other is not; a penalty on a weight adds one array to all its rows.
Brought to one kind, the indices would become one-hot factors as large as the others,
and the array as many terms as it has lines.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax

from consensus_optax._rows.seal import refusing
from consensus_optax._typing import Array


@refusing
@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["parts"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True, eq=False)
class SumOfProducts:
    r"""Rows :math:`g_i = \sum_p g^{(p)}_i`, every part an outer product of its own.

    Attributes:
      parts: outer products of one shape, ``row_shape``, steps, dtype and number of
        layers; they differ in how the matrix of a row is a product. The first one has
        its sides M and N. A part that is one array for all rows, times a number of
        each, has it as the one left factor that they share, (1, 1, M N) with N = 1.

    Guarantees: as of an outer product: the same rows, a pytree with the seals of its
    parts, arithmetic on which is an error. What one array all rows share is held once
    until a tree function takes the rows apart.
    """

    parts: tuple[Any, ...]

    @property
    def is_intact(self) -> bool:
        """Whether the factors are still those of these rows, as the seals tell."""
        return all(part.is_intact for part in self.parts)

    @property
    def held(self) -> list[Array]:
        """The factors of all parts."""
        return [factor for part in self.parts for factor in part.held]

    @property
    def num_layers(self) -> int | None:
        """L, or None where there is no axis of layers."""
        return self.parts[0].num_layers

    @property
    def sides(self) -> tuple[int, int, int]:
        """All terms, and M and N of the first part."""
        _, m, n = self.parts[0].sides
        return sum(part.sides[0] for part in self.parts), m, n

    @property
    def dtype(self) -> Any:
        """Dtype of the materialized rows."""
        return self.parts[0].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the materialized rows, (B, *parameter.shape)."""
        return self.parts[0].shape

    @property
    def ndim(self) -> int:
        """Number of axes of the materialized rows."""
        return self.parts[0].ndim

    @property
    def size(self) -> int:
        """Number of entries of the materialized rows."""
        return self.parts[0].size

    @property
    def spec(self) -> tuple[Any, ...]:
        """Mesh axes that each axis of the parameter's shape is cut along."""
        return self.parts[0].spec

    def materialize(self) -> Array:
        """The rows multiplied out, shape (B, *parameter.shape) and ``dtype``."""
        return total_of(lambda part: part.materialize(), self)

    def __getitem__(self, rows: Any) -> SumOfProducts:
        """Several rows: a slice, or indices (B',)."""
        return SumOfProducts(tuple(part[rows] for part in self.parts))


def parts_of(leaf: Any) -> tuple[Any, ...]:
    """The outer products that factored rows are the sum of: one, or several."""
    return leaf.parts if isinstance(leaf, SumOfProducts) else (leaf,)


def each_part(function: Callable[[Any], Any], leaf: Any) -> Any:
    """Factored rows with a function applied to every outer product that they are."""
    if isinstance(leaf, SumOfProducts):
        return SumOfProducts(tuple(map(function, leaf.parts)))
    return function(leaf)


def total_of(function: Callable[[Any], Any], leaf: Any) -> Any:
    """A function of every outer product that factored rows are, summed."""
    return functools.reduce(operator.add, map(function, parts_of(leaf)))


def with_held(leaf: Any, held: Sequence[Any]) -> Any:
    """Factored rows with other factors, in the order of ``held``."""
    pairs = iter(zip(held[::2], held[1::2], strict=True))

    def other(part: Any) -> Any:
        left, right = next(pairs)
        return dataclasses.replace(part, left=left, right=right)

    return each_part(other, leaf)
