"""A small model of text: each character from the few before it."""

import jax
import jax.numpy as jnp
from flax import nnx


class CharacterMLP(nnx.Module):
    """Predicts every character of a text from the ``context`` characters before it.

    Embeddings side by side, one hidden layer with ReLU, one class per character: a
    feed-forward language model, small enough to be trained on many clients at once.
    """

    def __init__(
        self,
        num_characters: int,
        *,
        context: int = 8,
        features: int = 16,
        width: int = 128,
        rngs: nnx.Rngs,
    ):
        """Makes the weights.

        Args:
          num_characters: size of the vocabulary.
          context: characters that a prediction sees, at least 1.
          features: numbers that stand for one character.
          width: size of the hidden layer.
          rngs: the source of the weights.
        """
        if context < 1:
            raise ValueError(f"`context` must be at least 1; got {context}")
        self.context = context
        self.embed = nnx.Embed(num_characters, features, rngs=rngs)
        self.hidden = nnx.Linear(context * features, width, rngs=rngs)
        self.head = nnx.Linear(width, num_characters, rngs=rngs)

    def __call__(self, ids: jax.Array) -> jax.Array:
        """Predicts the logits of all characters but the first ``context``.

        Args:
          ids: numbers of characters, ``(N, length)``, length > context.

        Returns:
          Logits of ``ids[:, context:]``, ``(N, length - context, num_characters)``.
        """
        x = self.embed(ids)  # (N, length, features)
        count = ids.shape[1] - self.context
        before = [x[:, i : i + count] for i in range(self.context)]
        x = jnp.concatenate(before, -1)  # (N, count, context * features)
        return self.head(nnx.relu(self.hidden(x)))  # (N, count, num_characters)
