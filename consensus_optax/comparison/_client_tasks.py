"""Data and models of many clients, as functions of the parameters."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from consensus_optax import attacks, tasks, training

CONTEXT, PREDICTED = 6, 32  # characters before the first prediction, and predictions


class ClientTask(NamedTuple):
    """What clients have, what they minimize, and how it is judged.

    Attributes:
      name: of the task.
      data: leaves (num_clients, longest, ...).
      counts: (num_clients,) how much of it is there.
      params: from a seed to parameters.
      loss: (params, batch) to the mean loss.
      draw: (key, data of a client, count) to a batch, (inputs, targets).
      scores: params to accuracy and loss on data kept from training, and ``fooled``,
        the share of pictures taken for class 0 with a patch on them.
      num_classes: targets are below.
      pictures: whether inputs are pictures, on which a patch can be.
      trivial: a prediction that needs no learning, and its accuracy.
    """

    name: str
    data: Any
    counts: Any
    params: Callable[[int], Any]
    loss: Callable[[Any, Any], jax.Array]
    draw: Callable[[jax.Array, Any, Any], Any]
    scores: Callable[[Any], dict[str, jax.Array]]
    num_classes: int
    pictures: bool
    trivial: tuple[str, float]


def picture_clients(
    whole: tasks.Task,
    split: Callable[[np.ndarray], tasks.Split],
    *,
    shift: float = 0.0,
    batch_size: int = 16,
    width: int = 64,
) -> ClientTask:
    """Pictures of one data set, shared out; a network of one hidden layer.

    What a client has are places in one table, so that clients of very unequal size take
    the memory of the pictures alone.

    Args:
      whole: one problem with a label for each picture: `tasks.digits`.
      split: from the labels to who has which example.
      shift: of `tasks.shift_features`.
      batch_size: of a local step.
      width: of the hidden layer.

    Returns:
      The task.

    Examples:
      >>> split = lambda labels: tasks.even_split(len(labels), 10)
      >>> task = picture_clients(tasks.digits(), split)
      >>> task.data.shape
      (10, 144)
    """
    pictures, labels = whole.train.inputs[0], np.asarray(whole.train.targets[0])
    shares = split(labels)
    places = shares.indices
    if shift:
        own = tasks.shift_features(tasks.split_examples(pictures, shares), shift)
        there = np.arange(places.shape[1]) < shares.counts[:, None]
        pictures = np.empty_like(pictures)
        pictures[places[there]] = own[there]
    table = jax.tree.map(jnp.asarray, (pictures, labels))
    size = math.prod(pictures.shape[1:])
    make = lambda seed: _Hidden(size, width, whole.num_classes, nnx.Rngs(seed))
    apply, _ = training.functional(make(0))

    def loss(params: Any, batch: Any) -> jax.Array:
        inputs, targets = batch
        return tasks.example_losses(apply(params, inputs), targets).mean()

    def draw(key: jax.Array, own: Any, count: Any) -> Any:
        drawn = training.draw_examples(key, own, count, batch_size=batch_size)
        return jax.tree.map(lambda leaf: leaf[drawn], table)

    test, truth = map(jnp.asarray, (whole.test.inputs[0], whole.test.targets[0]))
    others = (truth != 0).astype(jnp.float32)

    def scores(params: Any) -> dict[str, jax.Array]:
        logits = apply(params, test)
        fooled = jnp.argmax(apply(params, attacks.trigger(test)), -1) == 0
        fooled = fooled.astype(jnp.float32)
        return {
            "test_accuracy": jnp.mean(jnp.argmax(logits, -1) == truth),
            "test_loss": tasks.example_losses(logits, truth).mean(),
            "fooled": training.weighted_mean(fooled, others),
        }

    return ClientTask(
        whole.name,
        places,
        shares.counts,
        lambda seed: training.functional(make(seed))[1],
        loss,
        draw,
        scores,
        whole.num_classes,
        True,
        (whole.trivial, float(whole.trivial_accuracy.mean())),
    )


class _Hidden(nnx.Module):
    """One hidden layer with ReLU."""

    def __init__(self, features: int, width: int, num_classes: int, rngs: nnx.Rngs):
        self.first = nnx.Linear(features, width, rngs=rngs)
        self.last = nnx.Linear(width, num_classes, rngs=rngs)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        flat = inputs.reshape(inputs.shape[0], -1)
        return self.last(nnx.relu(self.first(flat)))


def shakespeare_clients(
    roles: tasks.Roles, *, width: int = 64, num_windows: int = 8, test_windows: int = 4
) -> ClientTask:
    """Shakespeare's roles, and a small model of the next character.

    Args:
      roles: from `tasks.shakespeare`.
      width: of the hidden layer.
      num_windows: pieces of text of a local step.
      test_windows: pieces of every role's kept text.

    Returns:
      The task.

    Examples:
      >>> texts = tasks.Texts(np.zeros((3, 50), np.uint8), np.full(3, 50, np.int32))
      >>> roles = tasks.Roles(("a", "b", "c"), "xyz", texts, texts)
      >>> shakespeare_clients(roles).num_classes
      3
    """
    make = lambda seed: training.CharacterMLP(
        len(roles.vocabulary),
        context=CONTEXT,
        features=8,
        width=width,
        rngs=nnx.Rngs(seed),
    )
    apply, _ = training.functional(make(0))

    def loss(params: Any, batch: Any) -> jax.Array:
        ids, targets = batch
        return tasks.example_losses(apply(params, ids), targets).mean()

    def draw(key: jax.Array, text: Any, count: Any, num_windows: int) -> Any:
        length = CONTEXT + PREDICTED
        ids = tasks.draw_windows(
            key, text, count, num_windows=num_windows, length=length
        )
        return ids, ids[:, CONTEXT:]

    keys = jax.random.split(jax.random.key(0), len(roles.names))
    of_all = jax.vmap(functools.partial(draw, num_windows=test_windows))
    test = of_all(keys, *map(jnp.asarray, roles.test))  # (roles, test_windows, ...)
    ids, targets = (x.reshape(-1, x.shape[-1]) for x in test)

    def scores(params: Any) -> dict[str, jax.Array]:
        logits = apply(params, ids)
        return {
            "test_accuracy": jnp.mean(jnp.argmax(logits, -1) == targets),
            "test_loss": tasks.example_losses(logits, targets).mean(),
            "fooled": jnp.zeros(()),
        }

    commonest = np.bincount(np.asarray(targets).ravel()).max() / targets.size
    return ClientTask(
        "shakespeare",
        roles.train.ids,
        roles.train.counts,
        lambda seed: training.functional(make(seed))[1],
        loss,
        functools.partial(draw, num_windows=num_windows),
        scores,
        len(roles.vocabulary),
        False,
        ("always the commonest character", float(commonest)),
    )
