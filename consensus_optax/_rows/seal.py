"""The seal on factored rows: they may be moved, and not be calculated with.

Whatever is mapped over the leaves of a tree is mapped over the factors of a product,
and half of each is a quarter of the product. So a product has a third child, random
keys of the rows' own shape: JAX moves keys as it moves arrays and refuses to calculate
with them. A key of this kind has no bits, so a seal has no bytes.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NoReturn, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.random import define_prng_impl

T = TypeVar("T")

MISSING = (
    "Rows that are not multiplied out are selected and moved along their example axis, "
    "and not calculated with: a reducer is missing here, or use `co.on_rows`, "
    "`co.scale_examples` or `co.materialize`."
)


def _no_numbers(*args: Any) -> NoReturn:
    del args
    raise TypeError("The seal of factored rows is no source of random numbers.")


# JAX names the dtype in what it says of arithmetic, so the dtype says what to do.
_IMPL = define_prng_impl(
    key_shape=(0,),
    seed=_no_numbers,
    split=_no_numbers,
    random_bits=_no_numbers,
    fold_in=_no_numbers,
    name="factored rows",
    tag="factored rows: a reducer is missing here, or use co.on_rows",
)


def _keys(data: Any) -> Any:
    return jax.random.wrap_key_data(data, impl=_IMPL)


@functools.cache
def _dtype() -> Any:
    """The dtype of seals; found when first asked, since that may start a backend."""
    return jax.eval_shape(_keys, jax.ShapeDtypeStruct((0,), jnp.uint32)).dtype


def _seal_of(factor: Any, shape: tuple[int, ...]) -> Any:
    """A seal for rows (B, ...) of which ``factor`` is one, where that is and as it is.

    It is made of nothing of the factor, so it is sharded along the example axis, varies
    and is mapped as the factor is.
    """
    if isinstance(factor, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(shape, _dtype())
    nothing = lax.slice_in_dim(jnp.asarray(factor), 0, 0, axis=-1).astype(jnp.uint32)
    zeros = nothing.sum(tuple(range(1, nothing.ndim)), dtype=jnp.uint32)  # (B,)
    return _keys(lax.broadcast_in_dim(zeros, (*shape, 0), (0,)))


def is_seal(seal: Any, shape: tuple[int, ...]) -> bool:
    """Whether this is the seal of rows of that shape."""
    return getattr(seal, "dtype", None) == _dtype() and seal.shape == shape


def sealed(
    cls: type[T], data_fields: Sequence[str], meta_fields: Sequence[str]
) -> type[T]:
    """Registers a dataclass of factors as ``jax.tree_util.register_dataclass`` does.

    Its children are its ``factors``, in the order of ``data_fields``.

    A field ``seal`` is one more child: made where an object is taken apart for the
    first time, so that what is never taken apart never pays for it, and afterwards
    whatever a tree function has made of it. ``dataclasses.replace`` makes a new object.

    A map that stops at the object finds no arithmetic; nor does the sum of a parameter
    and its rows, whichever of them comes first.
    """

    def flatten(rows: Any) -> tuple[list[Any], tuple[Any, ...]]:
        factors, seal = list(rows.factors), rows.seal
        if seal is None:  # a tree of specs or the like holds no arrays: one more of it
            own = hasattr(factors[-1], "shape")
            seal = _seal_of(factors[-1], rows.shape) if own else factors[-1]
        return [*factors, seal], tuple(getattr(rows, name) for name in meta_fields)

    def flatten_with_keys(rows: Any) -> Any:
        children, meta = flatten(rows)
        keys = map(jax.tree_util.GetAttrKey, (*data_fields, "seal"))
        return list(zip(keys, children, strict=True)), meta

    def unflatten(meta: Any, children: Any) -> T:
        *factors, seal = children
        names = (*data_fields, *meta_fields)
        rows = cls(**dict(zip(names, (*factors, *meta), strict=True)))
        object.__setattr__(rows, "seal", seal)  # the class is frozen
        return rows

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return refusing(cls)


def refusing(cls: type[T]) -> type[T]:
    """The class, whose objects refuse arithmetic in words that say what to do."""
    for name in _ARITHMETIC:
        setattr(cls, f"__{name}__", _refuse)
    cls.__array_ufunc__ = None  # NumPy leaves its sums to the other operand
    cls.__getattr__ = _no_method
    return cls


# What JAX and NumPy ask for first is among them, to be refused in the same words.
_ARITHMETIC = (
    *("jax_array", "array", "neg", "abs", "add", "radd", "sub", "rsub", "mul", "rmul"),
    *("truediv", "rtruediv", "pow", "rpow", "matmul", "rmatmul"),
)


def _refuse(rows: Any, *operands: Any, **options: Any) -> NoReturn:
    del rows, operands, options
    raise TypeError(MISSING)


def _no_method(rows: Any, name: str) -> NoReturn:
    raise AttributeError(f"`{type(rows).__name__}` has no `{name}`. {MISSING}")
