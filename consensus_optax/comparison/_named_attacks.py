"""Attacks by name: on rows, on data at the source, on who is there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

import consensus_optax as co
from consensus_optax import _check, attacks


class NamedAttack(NamedTuple):
    """What the dishonest clients of a round do.

    Attributes:
      rows: from a rule to ``attack(honest, num_byzantine, key)``; None: their own rows.
      data: ``"labels"`` are turned round, ``"patch"``: a back door; "" for none.
      absent: how often all stay away together.
    """

    rows: Callable[[co.Reducer], Callable[..., Any]] | None = None
    data: str = ""
    absent: float = 0.0


def _fixed(attack: Callable[..., Any], **options: Any) -> NamedAttack:
    made = lambda honest, f, key: attack(honest, f, key, **options)
    return NamedAttack(lambda rule: made)


def _searched(attack: Callable[..., Any], strength: str) -> NamedAttack:
    search = lambda rule: attacks.strongest(
        attack, rule, strength, grid=attacks.SHORT_GRID, num_refinements=6
    )
    return NamedAttack(search)


def named_attacks() -> dict[str, Callable[..., NamedAttack]]:
    """Every attack by its name, with what arguments it takes.

    Returns:
      Name to a function that makes it.

    Examples:
      >>> "none" in named_attacks(), "strongest_ipm" in named_attacks()
      (True, True)
    """

    def none() -> NamedAttack:
        """Nobody attacks."""
        return NamedAttack()

    def label_flip() -> NamedAttack:
        """Labels turned round at the source: honest training on wrong data."""
        return NamedAttack(data="labels")

    def back_door() -> NamedAttack:
        """Pictures with a patch are called class 0, at the source."""
        return NamedAttack(data="patch")

    def silence(probability: float = 0.5) -> NamedAttack:
        """All attackers stay away together, every other round."""
        _check.static_number("probability", probability, 0, 1)
        return NamedAttack(absent=probability)

    def sign_flip(scale: float = 1.0) -> NamedAttack:
        """Each attacker's own gradient, turned round."""
        _check.static_number("scale", scale)
        return _fixed(attacks.sign_flip, scale=scale, own=True)

    def ipm(epsilon: float = 10.0) -> NamedAttack:
        """Inner-product manipulation: minus epsilon times the honest mean."""
        _check.static_number("epsilon", epsilon)
        return _fixed(attacks.inner_product_manipulation, epsilon=epsilon)

    def alie(z: float = 1.5) -> NamedAttack:
        """A little is enough: z deviations off the honest mean."""
        _check.static_number("z", z)
        return _fixed(attacks.a_little_is_enough, num_deviations=z)

    def gaussian(scale: float = 1.0) -> NamedAttack:
        """Normal noise."""
        _check.static_number("scale", scale)
        return _fixed(attacks.gaussian, scale=scale)

    def mimic() -> NamedAttack:
        """Copies of the honest row that stands out most."""
        return _fixed(attacks.mimic, index=None)

    def infinite() -> NamedAttack:
        """Rows that are not finite."""
        return _fixed(attacks.infinite)

    def strongest_alie() -> NamedAttack:
        """A little is enough, its strength searched against the rule."""
        return _searched(attacks.a_little_is_enough, "num_deviations")

    def strongest_ipm() -> NamedAttack:
        """Inner-product manipulation, its strength searched against the rule."""
        return _searched(attacks.inner_product_manipulation, "epsilon")

    made = [none, label_flip, back_door, silence, sign_flip, ipm, alie, gaussian]
    made += [mimic, infinite, strongest_alie, strongest_ipm]
    return {function.__name__: function for function in made}


def on_rows(
    attack: NamedAttack, rule: co.Reducer, num_byzantine: int, key: jax.Array
) -> Callable[[Any, jax.Array], Any] | None:
    """What arrives of a round whose last rows are the attackers'.

    Args:
      attack: what they do.
      rule: that they face.
      num_byzantine: how many they are.
      key: random key; the number of the round is folded in.

    Returns:
      ``attack(rows, step)`` for `training.federated_round`, or None.

    Examples:
      >>> import jax.numpy as jnp
      >>> attack = named_attacks()["infinite"]()
      >>> replaced = on_rows(attack, co.mean(), 1, jax.random.key(0))
      >>> replaced(jnp.zeros((2, 1)), jnp.array(0)).tolist()
      [[0.0], [inf]]
    """
    if attack.rows is None or not num_byzantine:
        return None
    make = attack.rows(rule)

    def replaced(rows: Any, step: jax.Array) -> Any:
        honest = jax.tree.map(lambda leaf: leaf[:-num_byzantine], rows)
        bad = make(honest, num_byzantine, jax.random.fold_in(key, step))
        return attacks.join(honest, bad)

    return replaced


def on_data(
    attack: NamedAttack, batch: Any, num_byzantine: int, num_classes: int
) -> Any:
    """The batches of a round whose last clients are the attackers.

    Args:
      attack: what they do.
      batch: (inputs, targets) with leaves (n, num_steps, batch_size, ...).
      num_byzantine: how many they are.
      num_classes: targets are below.

    Returns:
      Batches of the same shapes.

    Examples:
      >>> import jax.numpy as jnp
      >>> attack = named_attacks()["label_flip"]()
      >>> batch = jnp.zeros((2, 1, 1)), jnp.array([[[1]], [[1]]])
      >>> on_data(attack, batch, 1, 10)[1].ravel().tolist()
      [1, 8]
    """
    if not attack.data or not num_byzantine:
        return batch
    inputs, targets = batch
    own, told = inputs[-num_byzantine:], targets[-num_byzantine:]
    if attack.data == "labels":
        told = attacks.label_flip(told, num_classes)
    else:
        share = own.shape[2] // 2  # the other half keeps what is right alive
        seen, said = attacks.back_door(own[:, :, :share], told[:, :, :share], 0)
        own, told = own.at[:, :, :share].set(seen), told.at[:, :, :share].set(said)
    return (
        inputs.at[-num_byzantine:].set(own),
        targets.at[-num_byzantine:].set(told),
    )
