"""Equinox: a module with an activation function among its leaves, as it is."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from examples._common import batches, digits, num_steps


def loss_fn(model, batch):
    """The mean loss of a batch."""
    x, y = batch
    logits = jax.vmap(model)(x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


optimizer = optax.adam(1e-2)


@eqx.filter_jit
def make_step(model, opt_state, batch):
    """One step, as in Equinox's documentation."""
    loss, grads = eqx.filter_value_and_grad(loss_fn)(model, batch)
    params = eqx.filter(model, eqx.is_inexact_array)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return loss, eqx.apply_updates(model, updates), opt_state


def main() -> float:
    """Trains; the accuracy on the test set."""
    train, test = digits()
    model = eqx.nn.MLP(64, 10, 128, 1, activation=jax.nn.relu, key=jax.random.key(0))
    opt_state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))
    for batch in batches(train, num_steps()):
        loss, model, opt_state = make_step(model, opt_state, batch)
    score = float(jnp.mean(jnp.argmax(jax.vmap(model)(test[0]), -1) == test[1]))
    print(f"loss {loss:.3f}, accuracy on the test set {score:.3f}")
    return score


if __name__ == "__main__":
    main()
