"""The median of three successive updates."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from consensus_optax._rows.stack import check_reduced
from consensus_optax._rows.trees import floating
from consensus_optax._typing import Array, Count, Tree
from consensus_optax.update_transforms._sound import is_sound, no_update_yet, or_zero


class MedianOfThreeState(NamedTuple):
    """State of :func:`median_of_three_steps`.

    Attributes:
      seen: () int32, updates that came in so far, without the empty ones.
      last: the one before, like the parameters, float32 at least.
      before_last: the one before that.
    """

    seen: Count
    last: Tree
    before_last: Tree


def median_of_three_steps() -> optax.GradientTransformationExtraArgs:
    r"""Rolling median of three (RM3): an entry that one step alone has is dropped.

    Also known as: RM3.

    .. math:: u_t \leftarrow \mathrm{median}(u_t, u_{t-1}, u_{t-2})

    coordinate by coordinate, of the incoming updates. It wants the third of them that
    the other two agree on, so what a single batch memorizes does not pass.

    Guarantees: from the third update on, every entry is one of the last three; scaling
    all updates scales the result; of three equal updates that update.
    Edge cases: the first update passes, the second is averaged with the first. An
    incoming update that is all zero (empty consensus) or has a non-finite entry goes
    out as zero and is not remembered.

    Returns:
      A temporal transformation, placed after the reducer in ``optax.chain``.

    Raises:
      ValueError: when traced, rows come in, which no reducer has reduced.

    Cost: two arrays like the parameters kept.

    References: Zielinski et al., `Weak and strong gradient directions: explaining
    memorization, generalization, and hardness of examples at scale
    <https://arxiv.org/abs/2003.07422>`_, 2020.

    Examples:
      >>> import jax.numpy as jnp
      >>> median, params = median_of_three_steps(), jnp.zeros(1)
      >>> state = median.init(params)
      >>> for step in (1., 3., 90., 2.):
      ...     update, state = median.update(jnp.array([step]), state, params)
      ...     print(update)
      [1.]
      [2.]
      [3.]
      [3.]
    """

    def init(params: Tree) -> MedianOfThreeState:
        return MedianOfThreeState(
            jnp.zeros((), jnp.int32), no_update_yet(params), no_update_yet(params)
        )

    def update(
        updates: Tree,
        state: Any,
        params: Tree | None = None,
        **extra: Any,
    ) -> tuple[Tree, MedianOfThreeState]:
        del params, extra
        check_reduced(updates, state.last)
        leaves, treedef = jax.tree.flatten(updates)
        lasts = treedef.flatten_up_to(state.last)
        olds = treedef.flatten_up_to(state.before_last)
        sound = is_sound(leaves)

        def median(new: Any, last: Array, old: Array) -> tuple[Any, Array, Array]:
            """The outgoing leaf and the two to remember."""
            if not floating(new):
                return new, last, old
            now = new.astype(last.dtype)
            low, high = jnp.minimum(now, last), jnp.maximum(now, last)
            middle = jnp.maximum(low, jnp.minimum(high, old))
            middle = jnp.where(state.seen == 1, now + (last - now) / 2, middle)
            middle = jnp.where(state.seen == 0, now, middle)
            remembered = jnp.where(sound, now, last), jnp.where(sound, last, old)
            return or_zero(sound, new, middle), *remembered

        triples = [median(*t) for t in zip(leaves, lasts, olds, strict=True)]
        outgoing, last, before = ([t[i] for t in triples] for i in range(3))
        return jax.tree.unflatten(treedef, outgoing), MedianOfThreeState(
            jnp.where(sound, jnp.asarray(optax.safe_increment(state.seen)), state.seen),
            jax.tree.unflatten(treedef, last),
            jax.tree.unflatten(treedef, before),
        )

    return optax.GradientTransformationExtraArgs(init, update)
