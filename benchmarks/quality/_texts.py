"""Windows of Shakespeare, by role, and small models of the next character."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.quality import _networks
from consensus_optax import tasks, training

LEAST, MOST = 4000, 5000  # characters of a role
HELD_BACK = 128  # windows of validation, and of the test


class Windows(NamedTuple):
    """Pieces of text; leaves (..., length), small integers."""

    characters: Any
    labels: Any  # what comes next


@functools.cache
def roles() -> tasks.Roles:
    """Those who say much."""
    return tasks.shakespeare(min_characters=LEAST, max_characters=MOST)


def windows(seed: int, length: int, num_roles: int) -> tuple[Windows, Windows, Windows]:
    """Train, valid and test; the first (num_roles, as many windows of each, length).

    Roles are drawn. The ends of texts are kept back, of other roles for validation than
    for the test.
    """
    every, random = roles(), np.random.default_rng(seed)
    order = random.permutation(len(every.names))
    of_each = (int(every.train.counts.min()) - 1) // length
    train = [_cut(every.train, role, length)[:of_each] for role in order[:num_roles]]
    kept = [
        random.permutation(np.concatenate([_cut(every.test, r, length) for r in half]))
        for half in (order[::2], order[1::2])
    ]
    valid, test = (_as_windows(cut[:HELD_BACK]) for cut in kept)
    return _as_windows(np.stack(train)), valid, test


def _cut(texts: tasks.Texts, role: int, length: int) -> np.ndarray:
    """What a role says, in pieces that share their ends, (N, length + 1)."""
    number = (int(texts.counts[role]) - 1) // length
    starts = length * np.arange(number)[:, None]
    return np.asarray(texts.ids[role])[starts + np.arange(length + 1)]


def _as_windows(ids: np.ndarray) -> Windows:
    return Windows(ids[..., :-1], ids[..., 1:].astype(np.int32))


def transformer(length: int, features: int) -> _networks.Classifier:
    """Two blocks of attention."""
    init, apply = _networks.of_flax(
        lambda rngs: training.CharacterTransformer(
            len(roles().vocabulary), length=length, features=features, rngs=rngs
        )
    )
    whole = lambda ids: ids.astype(jnp.int32)
    return _networks.telling(init, lambda p, ids: apply(p, whole(ids)), "characters")


def perceptron(context: int, features: int, width: int) -> _networks.Classifier:
    """One hidden layer, which sees some characters; the first are not told."""
    init, apply = _networks.of_flax(
        lambda rngs: training.CharacterMLP(
            len(roles().vocabulary),
            context=context,
            features=features,
            width=width,
            rngs=rngs,
        )
    )

    def logits(params: Any, ids: jax.Array) -> jax.Array:
        ids = jnp.pad(ids.astype(jnp.int32), ((0, 0), (context - 1, 0)))
        return apply(params, jnp.pad(ids, ((0, 0), (0, 1))))

    return _networks.telling(init, logits, "characters")
