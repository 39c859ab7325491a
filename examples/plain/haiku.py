"""Haiku with dropout, a key for every row. Needs ``pip install dm-haiku``."""

import haiku as hk
import jax
import jax.numpy as jnp
import optax

from examples._common import batches, digits, num_steps


def forward(x, is_training):
    """One hidden layer, then dropout."""
    x = jax.nn.relu(hk.Linear(128)(x))
    if is_training:
        x = hk.dropout(hk.next_rng_key(), 0.2, x)
    return hk.Linear(10)(x)


network = hk.transform(forward)
optimizer = optax.adam(1e-2)


def loss_fn(params, key, batch):
    """The mean loss of a batch."""
    x, y = batch
    logits = network.apply(params, key, x, is_training=True)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


@jax.jit
def update(params, opt_state, key, batch):
    """One step."""
    grads = jax.grad(loss_fn)(params, key, batch)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state


def main() -> float:
    """Trains; the accuracy on the test set."""
    train, test = digits()
    key = jax.random.key(0)
    params = network.init(key, train[0][:1], is_training=False)
    opt_state = optimizer.init(params)
    for number, batch in enumerate(batches(train, num_steps())):
        own = jax.random.fold_in(key, number)
        params, opt_state = update(params, opt_state, own, batch)
    logits = network.apply(params, key, test[0], is_training=False)
    score = float(jnp.mean(jnp.argmax(logits, -1) == test[1]))
    print(f"accuracy on the test set {score:.3f}")
    return score


if __name__ == "__main__":
    main()
