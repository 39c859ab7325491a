"""The steps that are compared: from (params, batch) to one update."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

import consensus_optax as co
from benchmarks._workloads import Workload

Step = Callable[..., Any]

# Chains and every reducer that the issue of speed has a target for, and some more.
REDUCERS: dict[str, Callable[[], Any]] = {
    "mean": co.mean,
    "sign_consensus": co.sign_consensus,
    "sign_consensus(quorum=0.8)": lambda: co.sign_consensus(0.8),
    "sign_consensus(mean)": lambda: co.sign_consensus(magnitude="mean"),
    "sign_consensus(agreeing_mean)": lambda: co.sign_consensus(
        magnitude="agreeing_mean"
    ),
    "sign_consensus(geometric)": lambda: co.sign_consensus(magnitude="geometric"),
    "cosine_filter": co.cosine_filter,
    "subspace_weighting": co.subspace_weighting,
    "clip_examples, mean": lambda: optax.chain(co.clip_examples(1.0), co.mean()),
}
# How rows reach the reducer, and which reducers are measured that way.
FEW = ("mean", "sign_consensus", "sign_consensus(quorum=0.8)", "cosine_filter")
VIAS = {
    "lazy": tuple(REDUCERS),  # per_example_grad
    "arrays": FEW,  # per_example_grad(materialize=True)
    "microbatches": FEW,  # value_and_reduced_grad, four microbatches if not told
}


def plain(work: Workload) -> Step:
    """The floor: gradient of the mean loss."""
    return jax.grad(work.loss)


def norms(work: Workload) -> Step:
    """The norm of every example's gradient, and no gradient."""
    rows = co.per_example_grad(work.loss)
    return lambda params, batch: co.diagnostics.row_norms(rows(params, batch))


def adam(work: Workload) -> tuple[Step, tuple[Any, ...]]:
    """The optimizer step alone, of a gradient that is there, and its arguments."""
    optimizer = optax.adam(1e-3)

    def step(grads: Any, state: Any, params: Any) -> Any:
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    grads = jax.tree.map(jnp.ones_like, work.params)
    return step, (grads, optimizer.init(work.params), work.params)


def stacked(work: Workload) -> Step:
    """``vmap(grad)``, as one writes it by hand: every example with its batch axis."""

    def step(params: Any, batch: Any) -> Any:
        one = lambda example: jax.grad(work.loss)(params, _with_axis(example))
        return jax.vmap(one)(batch)

    return step


def stacked_min_max(work: Workload) -> Step:
    """``vmap(grad)``, then minimum and maximum over the example axis."""

    def unanimous(g: jax.Array) -> jax.Array:
        low, high = g.min(0), g.max(0)
        return jnp.where(low > 0, low, jnp.where(high < 0, high, 0))

    rows = stacked(work)
    return lambda params, batch: jax.tree.map(unanimous, rows(params, batch))


def stacked_gramian(work: Workload) -> Step:
    """``vmap(grad)``, then inner products of all pairs and a weighted sum."""
    rows = stacked(work)

    def step(params: Any, batch: Any) -> Any:
        grads = rows(params, batch)
        flat = [g.reshape(g.shape[0], -1) for g in jax.tree.leaves(grads)]
        weights = sum(g @ g.T for g in flat).mean(0)
        return jax.tree.map(lambda g: jnp.tensordot(weights, g, 1), grads)

    return step


def ours(
    work: Workload, name: str, via: str, microbatch_size: int | None = None
) -> Step:
    """One of ``REDUCERS`` by one way; see :func:`reduced`."""
    return reduced(work, REDUCERS[name](), via, microbatch_size)


def reduced(
    work: Workload, reducer: Any, via: str, microbatch_size: int | None = None
) -> Step:
    """Gradients and a reducer of this library, by one way.

    Args:
      work: model and data.
      reducer: what rows are given to.
      via: key of ``VIAS``.
      microbatch_size: rows at a time, for ``microbatches``.

    Returns:
      A function of (params, batch) to (update, state).
    """
    if via != "microbatches":
        rows = co.per_example_grad(work.loss, materialize=via == "arrays")
        return lambda params, batch: reducer.update(
            rows(params, batch), reducer.init(params), params
        )
    size = microbatch_size or max(1, work.batch_size // 4)
    fused = co.value_and_reduced_grad(work.loss, reducer, microbatch_size=size)

    def step(params: Any, batch: Any) -> Any:
        _, update, state = fused(params, batch, state=reducer.init(params))
        return update, state

    return step


def all_ours(
    work: Workload, vias: Iterable[str] = tuple(VIAS)
) -> Iterator[tuple[str, str, Step]]:
    """Every reducer by every way that it is measured: (name, via, step)."""
    for via in vias:
        for name in VIAS[via]:
            yield name, via, ours(work, name, via)


def _with_axis(example: Any) -> Any:
    return jax.tree.map(lambda x: x[None], example)
