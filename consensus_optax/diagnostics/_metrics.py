"""What the rules did, out of an optimizer's state, as one flat dict."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from consensus_optax import _check
from consensus_optax._running.reducer import ReducerState
from consensus_optax._typing import Array, Tree
from consensus_optax.diagnostics._probe import ProbeState

_PACKAGE = __name__.partition(".")[0]
_NAMES = {"consensus_ready": "ready", "num_accepted": "accepted"}
# What only the state itself needs, and a filter's count, which the reducer has too.
_LEFT_OUT = {"step", "mass", "accepted", "merged", "batches"}
# What our states have like the parameters, of which some may be numbers.
_MEMORIES = {"previous", "arrays", "momentum", "error", "rows", "start"}
_MEMORIES |= {"ema", "signs", "last", "before_last"}
_QUANTILES = (0, 25, 50, 75, 100)

Path = tuple[Any, ...]


def metrics(opt_state: Tree, warn_after: int | None = 100) -> dict[str, Array]:
    """What reducers and their like have to say of the last step, to be logged.

    Of every reducer: ``consensus_ratio``, ``ready``, ``accepted``, ``num_present``,
    ``num_nonfinite`` and ``steps_without_consensus`` (see :class:`ReducerState`; its
    ``consensus_ready`` and ``num_accepted`` are meant). Of its rule what the rule's own
    state has in numbers: ``residual`` and ``converged`` of those that solve a problem,
    ``cosine_mean`` of filters. Of what stands before and after it: ``skipped``,
    ``kept``, ``suppressed``, ``scaled_share``, and the fields of :func:`probe`, with
    ``leaf_coherence/...`` for every leaf and ``cosine_quantiles/0`` to ``/100``.

    It looks into whatever holds these states: ``optax.chain``, ``partition``,
    ``masked``, ``inject_hyperparams``, ``MultiSteps``, ``apply_if_finite``, a whole
    ``TrainState``. Of states of other makers it takes nothing.

    Guarantees: names and dtypes depend on the structure of the state alone, never on
    its values, so it is compiled with the step or called on what came out of it.
    Edge cases: a name that occurs twice, say in two labels of ``optax.partition``, has
    what tells them apart before it, ``"body/consensus_ratio"``. Fields with one entry
    for each row, or each leaf, are no scalars and left out. A state without any of
    ours, as of plain Adam, gives an empty dict.

    Args:
      opt_state: the state of an optimizer, or any tree with such in it.
      warn_after: outside of ``jit``, warn if ``steps_without_consensus`` is that or
        more: such a model does not train. Where the step is still running nothing waits
        for it, and no warning comes. None: never.

    Returns:
      Names to arrays of shape (), which any writer of scalars takes.

    Raises:
      ValueError: the state is one of many models, with axes ahead of all fields: use
        ``jax.vmap(co.metrics)``.

    Cost: none; the step has computed all of it.

    Examples:
      >>> import jax.numpy as jnp, optax, consensus_optax as co
      >>> tx, params = optax.chain(co.sign_consensus(), optax.adam(1e-3)), jnp.zeros(4)
      >>> rows = jnp.array([[1., 2., -1., 1.], [1., 1., 1., -3.]])
      >>> _, state = tx.update(rows, tx.init(params), params)
      >>> metrics = co.metrics(state)
      >>> float(metrics["consensus_ratio"]), int(metrics["accepted"])
      (0.5, 2)
      >>> class Writer:  # any writer of scalars: TensorBoard's, Weights & Biases'
      ...     def add_scalar(self, name, value, step):
      ...         print(step, name, float(value))
      >>> for name, value in sorted(metrics.items())[:2]:
      ...     Writer().add_scalar(f"consensus/{name}", value, 7)
      7 consensus/accepted 2.0
      7 consensus/consensus_ratio 0.5
    """
    if warn_after is not None:
        _check.count("warn_after", warn_after)
    found = list(_found(opt_state, (), False))
    names = _names([(path, name) for path, name, _ in found])
    result = {
        name: jnp.asarray(value)
        for name, (_, _, value) in zip(names, found, strict=True)
    }
    if warn_after is not None:
        _warn(found, names, warn_after)
    return result


def _found(node: Any, path: Path, of_rule: bool) -> Iterator[tuple[Path, str, Any]]:
    """(path of its state, name, value) of every number of our states."""
    ours = _is_ours(node) or (of_rule and type(node) not in (list, tuple))
    if isinstance(node, ReducerState) and jnp.ndim(node.step):
        raise ValueError(
            "`opt_state` must be the state of one optimizer; got one of many, with "
            f"axes {jnp.shape(node.step)} ahead of all fields. Use "
            "`jax.vmap(co.metrics)(opt_state)`."
        )
    if isinstance(node, ProbeState):
        yield from _of_probe(node, path)
        return
    for key, child in _children(node):
        name = _text(key)
        if (ours and name in _LEFT_OUT) or (_is_ours(node) and name in _MEMORIES):
            continue
        if not hasattr(child, "dtype"):
            inside = isinstance(node, ReducerState) and name == "rule_state"
            yield from _found(child, (*path, key), of_rule or inside)
        elif ours and _is_number(child):
            yield path, _NAMES.get(name, name), child


def _of_probe(state: ProbeState, path: Path) -> Iterator[tuple[Path, str, Any]]:
    """What the probe says of all leaves, of each, and of groups of them."""
    for name, given in state._asdict().items():
        if name == "cosine_quantiles":
            if given is not None:
                for i, percent in enumerate(_QUANTILES):
                    yield path, f"{name}/{percent}", given[i]
        elif name not in _LEFT_OUT:
            for key, value in jax.tree_util.tree_leaves_with_path(given):
                leaf = jax.tree_util.keystr(key, simple=True, separator="/")
                yield path, f"{name}/{leaf}".rstrip("/"), value


def _children(node: Any) -> list[tuple[Any, Any]]:
    """The parts of one node of a tree with their keys; none of a leaf."""
    below = lambda other: other is not node
    flat = jax.tree_util.tree_leaves_with_path(node, is_leaf=below)
    return [(path[0], child) for path, child in flat if path]


def _is_ours(node: Any) -> bool:
    module = type(node).__module__
    return hasattr(node, "_fields") and module.partition(".")[0] == _PACKAGE


def _is_number(value: Any) -> bool:
    """Whether it is an array of shape (), and no random key."""
    dtype = getattr(value, "dtype", None)
    known = dtype is not None and not jax.dtypes.issubdtype(dtype, jax.dtypes.extended)
    return known and jnp.shape(value) == ()


def _text(key: Any) -> str:
    return jax.tree_util.keystr((key,), simple=True)


def _names(found: list[tuple[Path, str]]) -> list[str]:
    """A name for each number, with as much of its path as it takes to be the only."""
    count = Counter(name for _, name in found)
    return [
        name if count[name] == 1 else _apart(path, name, found) for path, name in found
    ]


def _apart(path: Path, name: str, found: list[tuple[Path, str]]) -> str:
    """The name with what its path has that not all paths of that name have."""
    paths = [other for other, its_name in found if its_name == name]
    is_label = lambda key: not isinstance(key, jax.tree_util.GetAttrKey)
    for keep in (is_label, lambda key: True):  # fields of wrappers, if need be
        words = [[_text(key) for key in other if keep(key)] for other in paths]
        if len(set(map(tuple, words))) == len(words):
            break
    own = words[paths.index(path)]
    start = _num_shared(words)
    end = _num_shared([each[start:][::-1] for each in words])
    return "/".join([*own[start : len(own) - end], name])


def _num_shared(words: list[list[str]]) -> int:
    """How many words all have first."""
    pairs = zip(*words, strict=False)
    return next(
        (i for i, same in enumerate(pairs) if len(set(same)) > 1),
        min(map(len, words), default=0),
    )


def _warn(found: list[tuple[Path, str, Any]], names: list[str], limit: int) -> None:
    """Says which reducer has agreed on nothing for long, where that is known."""
    for name, (_, own, value) in zip(names, found, strict=True):
        if own != "steps_without_consensus" or isinstance(value, jax.core.Tracer):
            continue
        if not getattr(value, "is_fully_addressable", True):
            continue
        if getattr(value, "is_ready", lambda: True)() and int(value) >= limit:
            warnings.warn(
                f"`{name}` is {int(value)}: for so many steps in a row less than 1 % "
                "of the coordinates have moved, so the model does not train. Give the "
                "reducer fewer rows (`group_size=`), a lower quorum or a wider "
                "threshold.",
                stacklevel=3,
            )
