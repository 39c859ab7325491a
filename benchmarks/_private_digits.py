"""DP-SGD on the handwritten digits: one loop, whoever makes its gradients private."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import consensus_optax as co
from consensus_optax import privacy, tasks

Params = dict[str, jax.Array]
# (params, state, batch, weights) to an update and a state.
Aggregate = Callable[[Any, Any, Any, Any], tuple[Any, Any]]


class Setting(NamedTuple):
    """A private training run; ``rate`` and the rest were chosen on another seed.

    Attributes:
      epsilon: what the run is to cost; 0 for a run without noise or clipping.
      delta: below 1 / 1437.
      sampling: of the batches.
      max_norm: C.
      rate: of SGD with momentum 0.9.
      width: of the one hidden layer.
      seeds: how many runs, each with its own split, start, batches and noise.
    """

    epsilon: float = 3.0
    delta: float = 1e-4
    sampling: privacy.PoissonSampling = privacy.PoissonSampling(
        1437, 0.15, num_steps=200, max_size=280
    )
    max_norm: float = 0.3
    rate: float = 0.3
    width: int = 64
    seeds: int = 5


def loss(params: Params, batch: Any) -> jax.Array:
    """Cross-entropy of a network with one hidden layer; any mean loss would do."""
    pixels, labels = batch
    scores = jax.nn.log_softmax(logits(params, pixels))
    return -jnp.take_along_axis(scores, labels[:, None], 1).mean()


def logits(params: Params, pixels: jax.Array) -> jax.Array:
    hidden = jnp.tanh(pixels.reshape(len(pixels), -1) @ params["w"] + params["b"])
    return hidden @ params["v"] + params["c"]


def initial(key: jax.Array, width: int) -> Params:
    one, other = jax.random.split(key)
    return {
        "w": jax.random.normal(one, (64, width)) / 8,
        "b": jnp.zeros(width),
        "v": jax.random.normal(other, (width, 10)) / width**0.5,
        "c": jnp.zeros(10),
    }


def ours(**options: Any) -> Callable[..., tuple[Any, Aggregate]]:
    """``private_sum`` of factored rows, clipped as the options say."""

    def make(setting: Setting, z: float, key: jax.Array) -> tuple[Any, Aggregate]:
        given = {"max_norm": setting.max_norm, **options}
        if given.pop("adapts", False):
            expected = setting.sampling.expected_size
            given["max_norm"] = co.quantile_norm(
                setting.max_norm, expected_rows=expected
            )
        rule = co.private_sum(
            divisor=setting.sampling.expected_size,
            noise_multiplier=z,
            key=key,
            **given,
        )
        return _reduced(rule)

    return make


def _reduced(rule: co.Reducer) -> tuple[Any, Aggregate]:
    """What a reducer of this library makes of rows."""
    rows = co.per_example_grad(loss)
    return rule.init, lambda params, state, batch, weights: rule.update(
        rows(params, batch), state, params, weights=weights
    )


def theirs(setting: Setting, z: float, key: jax.Array) -> tuple[Any, Aggregate]:
    """``jax_privacy``: its clipping and its noise."""
    noise_addition = importlib.import_module("jax_privacy.noise_addition")
    clipped_grad = importlib.import_module("jax_privacy.clipping").clipped_grad
    grad = clipped_grad(
        loss,
        l2_clip_norm=setting.max_norm,
        normalize_by=setting.sampling.expected_size,
    )
    noise = noise_addition.gaussian_privatizer(
        stddev=z * grad.sensitivity(), prng_key=key
    )

    def step(params: Params, state: Any, batch: Any, weights: Any) -> Any:
        return noise.update(grad(params, batch, is_padding_example=weights < 1), state)

    return noise.init, step


def of_optax(setting: Setting, z: float, key: jax.Array) -> tuple[Any, Aggregate]:
    """``optax.contrib``, whose divisor is the padded size: undone afterwards."""
    rule = optax.contrib.differentially_private_aggregate(setting.max_norm, z, key)
    one = lambda params, example: jax.grad(loss)(
        params, jax.tree.map(lambda x: x[None], example)
    )
    scale = setting.sampling.max_size / setting.sampling.expected_size

    def step(params: Params, state: Any, batch: Any, weights: Any) -> Any:
        rows = jax.vmap(one, (None, 0))(params, batch)
        keep = lambda g: g * weights.reshape(-1, *[1] * (g.ndim - 1))
        update, state = rule.update(jax.tree.map(keep, rows), state, params)
        return jax.tree.map(lambda leaf: scale * leaf, update), state

    return rule.init, step


def without_privacy(setting: Setting, z: float, key: Any) -> tuple[Any, Aggregate]:
    """The mean of the rows: what privacy costs."""
    del setting, z, key
    return _reduced(co.mean())


CONTESTANTS = {
    "without privacy": without_privacy,
    "private_sum": ours(),
    "private_sum, automatic": ours(clipping="automatic"),
    "private_sum, per leaf": ours(per_leaf=True),
    "private_sum, quantile_norm": ours(adapts=True),
    "jax_privacy": theirs,
    "optax.contrib": of_optax,
}


def accuracies(
    make: Callable[..., Any], setting: Setting, z: float, first_seed: int = 0
) -> list[float]:
    """Accuracy on the test set after a run, of every seed."""
    program = jax.jit(lambda *given: _trained(make, setting, z, *given))
    found = []
    for seed in range(first_seed, first_seed + setting.seeds):
        task = tasks.digits(seed=seed)
        train, test = (
            (jnp.asarray(x.inputs[0]), jnp.asarray(x.targets[0]))
            for x in (task.train, task.test)
        )
        params = program(jax.random.key(seed), train)
        right = logits(params, test[0]).argmax(1) == test[1].reshape(-1)
        found.append(float(right.mean()))
    return found


def _trained(
    make: Callable[..., Any], setting: Setting, z: float, key: jax.Array, train: Any
) -> Params:
    """The parameters after a run."""
    drawing, noise, start = jax.random.split(key, 3)
    init, aggregate = make(setting, z, noise)
    train = (train[0], train[1].reshape(-1))
    batch_at = privacy.poisson_batches(drawing, train, setting.sampling)
    optimizer = optax.sgd(setting.rate, momentum=0.9)
    params = initial(start, setting.width)

    def step(carry: Any, number: jax.Array) -> tuple[Any, None]:
        params, state, inner = carry
        update, state = aggregate(params, state, *batch_at(number))
        update, inner = optimizer.update(update, inner, params)
        return (optax.apply_updates(params, update), state, inner), None

    carry = params, init(params), optimizer.init(params)
    steps = jnp.arange(setting.sampling.num_steps)
    return jax.lax.scan(step, carry, steps)[0][0]
