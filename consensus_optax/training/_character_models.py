"""Small models of text: each character from those before it."""

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


class CharacterTransformer(nnx.Module):
    """Predicts the next character after every character of a text: a small decoder.

    Embeddings plus learned positions, blocks of causal attention and a two-layer
    perceptron, both on normalized inputs, one class per character. Every kernel takes
    part in one matrix product, so that rows of its gradient can stay factored.
    """

    def __init__(
        self,
        num_characters: int,
        *,
        length: int,
        num_blocks: int = 2,
        num_heads: int = 2,
        features: int = 32,
        rngs: nnx.Rngs,
    ):
        """Makes the weights.

        Args:
          num_characters: size of the vocabulary.
          length: of the longest text that it can read.
          num_blocks: how many blocks, one after the other.
          num_heads: of the attention; divides ``features``.
          features: numbers that stand for one character.
          rngs: the source of the weights.
        """
        self.embed = nnx.Embed(num_characters, features, rngs=rngs)
        self.positions = nnx.Embed(length, features, rngs=rngs)
        make = lambda: _Block(num_heads, features, rngs)
        self.blocks = nnx.List([make() for _ in range(num_blocks)])
        self.norm = nnx.LayerNorm(features, rngs=rngs)
        self.head = nnx.Linear(features, num_characters, rngs=rngs)

    def __call__(self, ids: jax.Array) -> jax.Array:
        """Predicts what follows every character, from it and those before it.

        Args:
          ids: numbers of characters, ``(N, size)``, size <= length.

        Returns:
          Logits of what comes next, ``(N, size, num_characters)``.

        Raises:
          ValueError: the text is longer than ``length``.
        """
        size, length = ids.shape[1], self.positions.num_embeddings
        if size > length:
            raise ValueError(
                f"`ids` must be texts of at most {length} characters, the `length` of "
                f"this model; got {size}"
            )
        x = self.embed(ids) + self.positions(jnp.arange(size)[None])
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class _Block(nnx.Module):
    """Attention, then the perceptron, each added to what came in."""

    def __init__(self, num_heads: int, features: int, rngs: nnx.Rngs):
        width = 4 * features
        self.before = nnx.LayerNorm(features, rngs=rngs)
        self.attend = nnx.MultiHeadAttention(
            num_heads, features, decode=False, rngs=rngs
        )
        self.between = nnx.LayerNorm(features, rngs=rngs)
        self.up = nnx.Linear(features, width, rngs=rngs)
        self.down = nnx.Linear(width, features, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.attend(self.before(x), is_causal=True)
        return x + self.down(nnx.gelu(self.up(self.between(x))))
