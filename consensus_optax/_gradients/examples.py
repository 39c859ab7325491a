"""Examples of a batch: how many there are, how many make a row, a key for each."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from consensus_optax import _check
from consensus_optax._gradients.leaves import is_array, named_leaves
from consensus_optax._gradients.names import kind_of
from consensus_optax._typing import Array, AxisName


def check_row_size(size: str, group_size: int, num_rows: int | None) -> None:
    """Raises unless rows are of so many examples, or so many in all, and not both."""
    _check.count(size, group_size)
    if num_rows is not None:
        _check.count("num_rows", num_rows)
        if group_size > 1:
            _check.fail("num_rows", f"None with `{size}` above 1", num_rows)


def examples_of_a_row(
    size: str, group_size: int, num_rows: int | None, length: int
) -> int:
    """How many of ``length`` examples make a row.

    Raises:
      ValueError: rows would not be of one length, or there would be none.
    """
    name, asked = (size, group_size) if num_rows is None else ("num_rows", num_rows)
    if length % asked or not length:
        padding = -length % asked
        advice = (
            "Pad the batch, and pass `weights` with 0 for the rows that are padding"
            if num_rows is None
            else f"Leave out {length % asked} examples or pad with {padding}, for "
            "rows are of one length"
        )
        raise ValueError(
            f"`{name}` must divide the number of examples, at least once; got "
            f"{asked} for {length}. {advice}."
        )
    return group_size if num_rows is None else length // num_rows


def number_of_examples(args: Sequence[Any], batched: Sequence[int]) -> int:
    """B, after checking that all leaves of the batch arguments agree on it."""
    lengths: dict[int, str] = {}
    for position in batched:
        for name, leaf in named_leaves(position, args[position]):
            if not is_array(leaf) or not leaf.ndim:
                scalar = is_array(leaf) or isinstance(leaf, bool | int | float)
                raise ValueError(
                    f"Every leaf of the batch must lead with the example axis; {name} "
                    f"is {'a scalar' if scalar else kind_of(leaf)}. Pass it as an "
                    "argument outside `batch_argnums`."
                )
            lengths.setdefault(leaf.shape[0], name)
    if len(lengths) != 1:
        found = ", ".join(f"{name} has {length}" for length, name in lengths.items())
        raise ValueError(
            "All leaves of the batch must have one number of examples; "
            f"{found or 'there are no leaves'}."
        )
    (length,) = lengths
    return length


def example_keys(key: Array, batch: Any, axis_name: AxisName | None = None) -> Array:
    r"""A random key for every example: one dropout mask each, however rows are made.

    .. math:: k_i = \mathrm{fold\_in}(\text{key}, i), \qquad i \text{ counted over the
        whole batch}

    The keys are a part of the batch, and a loss that draws by them, example by example,
    draws the same for an example whatever ``group_size``, ``num_rows``,
    ``microbatch_size`` and the mesh are. ``prng_argnum`` is shorter and draws by row:
    the same wherever a row is one example and one device has all of them.

    Args:
      key: one random key, typed or raw.
      batch: a tree whose leaves lead with the example axis; only its length is read.
      axis_name: inside ``jax.shard_map`` the mesh axes that cut the batch, whose other
        examples are counted too; None where ``batch`` is all.

    Returns:
      B keys.

    Raises:
      ValueError: leaves of the batch have no length, or several; ``key`` is not one.

    Examples:
      >>> import jax, jax.numpy as jnp, consensus_optax as co
      >>> def loss_of_one(w, x, key):
      ...     kept = jax.random.bernoulli(key, 0.5, x.shape)  # dropout
      ...     return (jnp.where(kept, 2 * x, 0) @ w) ** 2
      >>> def loss(w, batch):
      ...     return jax.vmap(loss_of_one, (None, 0, 0))(w, *batch).mean()
      >>> x, key = jnp.ones((4, 3)), jax.random.key(0)
      >>> batch = x, co.example_keys(key, x)
      >>> rows = co.per_example_grad(loss, num_rows=2)(jnp.ones(3), batch)
      >>> bool(jnp.allclose(rows.mean(0), jax.grad(loss)(jnp.ones(3), batch)))
      True
    """
    _check.key("key", key)
    return _folded(key, example_numbers(batch, axis_name))


def example_numbers(batch: Any, axis_name: AxisName | None) -> Array:
    """The index of every example in the whole batch, of all devices along the axes."""
    length = number_of_examples([batch], [0])
    numbers = jnp.arange(length, dtype=jnp.int32)
    if axis_name is None:
        return numbers
    names = _check.axis_names("axis_name", axis_name)
    return lax.axis_index(names) * length + numbers


def row_keys(position: int, key: Any, num_rows: int) -> Array:
    """One key for every row, by its index; as many keys as rows stay as given."""
    if not is_array(key):
        raise ValueError(
            f"`prng_argnum` must name a random key; argument {position} is "
            f"{kind_of(key)}. Make one by `jax.random.key`."
        )
    if _is_single(key):
        return _folded(key, jnp.arange(num_rows))
    if key.shape[0] != num_rows:
        raise ValueError(
            f"`prng_argnum` must name one key, or one for each of {num_rows} rows; "
            f"argument {position} has {key.shape[0]}. Keys of examples are a part of "
            "the batch: name their argument in `batch_argnums`."
        )
    return key


def _is_single(key: Any) -> bool:
    return key.ndim == (0 if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else 1)


def _folded(key: Array, numbers: Array) -> Array:
    return jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)


class ForgottenAxis(UserWarning):
    """What is shared by all rows looks as if it had one entry for each."""


def warn_of_forgotten(shared: dict[int, Any], num_rows: int, length: int) -> None:
    """Warns of labels that every row would see whole, as broadcasting hides it.

    Where all is one row, that is right. A raw key may have as many words as there are
    examples.
    """
    for position, arg in shared.items():
        shapes = [leaf.shape for leaf in jax.tree.leaves(arg) if is_array(leaf)]
        raw_key = getattr(arg, "dtype", None) == jnp.uint32 and shapes == [(2,)]
        leads = all(shape[:1] == (length,) for shape in shapes)
        if num_rows > 1 and shapes and leads and not raw_key:
            warnings.warn(
                f"Argument {position} leads with {length} entries, as many as there "
                "are examples, but every row gets all of them. If they belong to the "
                "examples, name it in `batch_argnums`; if not, pass it by keyword.",
                ForgottenAxis,
                stacklevel=4,
            )
