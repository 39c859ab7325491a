"""Batches that every example joins by its own chance, in arrays of one size."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from consensus_optax import _check
from consensus_optax._typing import Array, Tree


class PoissonSampling(NamedTuple):
    """How the batches of a training run are drawn.

    Every example is in a batch with the same probability, independently of all others
    and of all other batches. Of a batch that is larger than ``max_size`` so many
    examples stay, all subsets with the same probability; the accounting knows of it.

    Attributes:
      num_examples: N, of the whole training set. It counts as public.
      probability: q in [2**-32, 1], so that a batch is expected to have q N examples.
      num_steps: how many batches are drawn.
      max_size: the size to which every batch is padded; the accounting charges what is
        cut off. A few deviations above q N, each sqrt(q N), cost next to nothing.

    Examples:
      >>> PoissonSampling(1000, 0.1, num_steps=50, max_size=150).expected_size
      100.0
    """

    num_examples: int
    probability: float
    num_steps: int
    max_size: int

    @property
    def expected_size(self) -> float:
        """Q N, before anything is cut off: the divisor of a private sum."""
        return self.probability * self.num_examples

    def checked(self) -> PoissonSampling:
        """The same, or a ValueError that names what is wrong."""
        _check.count("num_examples", self.num_examples)
        _check.static_number("probability", self.probability, 2.0**-32, 1)
        _check.count("num_steps", self.num_steps)
        _check.count("max_size", self.max_size)
        return self


def poisson_batches(
    key: Array, examples: Tree, sampling: PoissonSampling
) -> Callable[[Array], tuple[Tree, Array]]:
    r"""The batches of a run, drawn as the accounting takes them to be drawn.

    .. math:: P(i \in \text{batch}) = \lfloor 2^{32} q \rfloor / 2^{32}

    Guarantees: every batch has ``max_size`` examples, those that are padding with
    weight 0; the batch of a step depends on the key and the step alone, so a run that
    goes on from a checkpoint goes on with its batches.
    Edge cases: a batch may be empty: all weights are 0, and the private sum is noise.

    Args:
      key: random key, not that of the noise; the number of the step is folded in.
      examples: leaves (N, ...).
      sampling: how to draw.

    Returns:
      ``batch_at(step)``, the batch of that step, leaves (max_size, ...), and its
      weights, 1 or 0, (max_size,): ``weights=`` of ``update``. To be used in ``jit``,
      and by ``training.train``.

    Raises:
      ValueError: a field of ``sampling`` is out of range, or not N examples are given.

    Cost: N random integers for each step, of which the smallest ``max_size`` are found.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> sampling = PoissonSampling(1000, 0.01, num_steps=50, max_size=20)
      >>> batch_at = poisson_batches(jax.random.key(0), jnp.arange(1000), sampling)
      >>> batch, weights = batch_at(3)
      >>> batch.shape, weights.shape, float(weights.sum()) < 20
      ((20,), (20,), True)
    """
    sampling = sampling.checked()
    examples = jax.tree.map(jnp.asarray, examples)
    for leaf in jax.tree.leaves(examples):
        if leaf.shape[:1] != (sampling.num_examples,):
            raise ValueError(
                "`examples` must have `num_examples` entries on the leading axis of "
                f"every leaf; got {leaf.shape}, not {sampling.num_examples}"
            )
    size = min(sampling.max_size, sampling.num_examples)
    # one less than the number of integers that mean yes
    last = jnp.uint32(int(sampling.probability * 2**32) - 1)

    def batch_at(step: Array) -> tuple[Tree, Array]:
        drawn = jax.random.bits(
            jax.random.fold_in(key, step), (sampling.num_examples,), jnp.uint32
        )
        # Of those drawn the order of the integers is random, too: of too many, the
        # smallest are a random subset.
        turned, indices = jax.lax.top_k(~drawn, size)
        weights = (~turned <= last).astype(jnp.float32)
        missing = sampling.max_size - size
        indices = jnp.pad(indices, (0, missing))
        batch = jax.tree.map(lambda leaf: leaf[indices], examples)
        return batch, jnp.pad(weights, (0, missing))

    return batch_at
