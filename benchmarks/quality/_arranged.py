"""Which examples of a batch make a row: neighbours do, so it is a matter of order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import consensus_optax as co
from benchmarks.quality import _data, _networks

Order = Callable[[Any, _data.Pictures], jax.Array]


def by(kind: str, network: _networks.Classifier, size: int) -> Callable[..., Any]:
    """``arranged(params, batch)``: the batch, with those of a row side by side.

    Rows are in the order of the first of their examples in the batch, which is random:
    the order of rows, which a filter minds, tells nothing.

    Args:
      kind: of ``KINDS``.
      network: of which activations and gradients are.
      size: examples of a row.
    """
    if kind == "random":
        return lambda params, batch: batch
    order = KINDS[kind](network, size)

    def arranged(params: Any, batch: _data.Pictures) -> _data.Pictures:
        rows = order(params, batch).reshape(-1, size)
        rows = rows[jnp.argsort(rows.min(1))]
        return jax.tree.map(lambda x: x[rows.reshape(-1)], batch)

    return arranged


def _one_label(network: Any, size: int) -> Order:
    del network, size
    return lambda params, batch: jnp.argsort(batch.labels, stable=True)


def _same_classes(network: Any, size: int) -> Order:
    """Sorted by label and dealt out: each row gets as many of a class as any other."""
    of_labels = _one_label(network, size)
    return lambda *given: of_labels(*given).reshape(size, -1).T.reshape(-1)


def _like_activations(network: _networks.Classifier, size: int) -> Order:
    """By the last hidden layer."""
    del network, size

    def order(params: Any, batch: _data.Pictures) -> jax.Array:
        *hidden, _ = params
        last = jax.nn.relu(_networks.mlp(hidden, batch.pixels))
        centred = last - last.mean(0)
        return chain(centred @ centred.T)

    return order


def _like_gradients(network: _networks.Classifier, size: int) -> Order:
    del size
    of_examples = co.per_example_grad(network.loss)
    return lambda *given: chain(co.diagnostics.gramian(of_examples(*given)))


def chain(gramian: jax.Array) -> jax.Array:
    """From the first example on, to the most alike of those left, by cosine."""
    norms = jnp.sqrt(gramian.diagonal())
    cosines = gramian / jnp.maximum(norms[:, None] * norms[None, :], 1e-30)
    away = jnp.zeros(len(gramian)).at[0].set(-jnp.inf)

    def go(carry: tuple[Any, Any], _: None) -> tuple[tuple[Any, Any], Any]:
        here, away = carry
        there = jnp.argmax(cosines[here] + away)
        return (there, away.at[there].set(-jnp.inf)), there

    start = jnp.zeros((), jnp.int32)
    rest = jax.lax.scan(go, (start, away), None, len(gramian) - 1)[1]
    return jnp.concatenate([start[None], rest.astype(jnp.int32)])


KINDS = {
    "random": None,
    "same classes": _same_classes,
    "one label": _one_label,
    "like activations": _like_activations,
    "like gradients": _like_gradients,
}
