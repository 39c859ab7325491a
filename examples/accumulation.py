"""Rows of two batches reduced together, as where one batch does not fit."""

import jax
import jax.numpy as jnp
import optax

import consensus_optax as co
from examples._common import batches, digits, num_steps


def logits_of(params, x):
    """One hidden layer."""
    return jax.nn.relu(x @ params["w"] + params["b"]) @ params["v"]


def loss_fn(params, batch):
    """The mean loss of a batch."""
    x, y = batch
    logits = logits_of(params, x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


adam = optax.adam(1e-2)
rule = co.accumulate(co.sign_consensus(), 2)
optimizer = optax.chain(rule, co.skip_if_empty(adam))


@jax.jit
def step(params, opt_state, batch):
    """One step; every second one updates."""
    loss, grads = co.per_example_value_and_grad(loss_fn, num_rows=2)(params, batch)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, loss


def main() -> float:
    """Trains; the accuracy on the test set."""
    train, test = digits()
    one, other = jax.random.split(jax.random.key(0))
    w, v = jax.random.normal(one, (64, 128)), jax.random.normal(other, (128, 10))
    params = {"w": w / 8, "b": jnp.zeros(128), "v": v / 128**0.5}
    opt_state = optimizer.init(params)
    for batch in batches(train, 2 * num_steps(), size=32):
        params, opt_state, loss = step(params, opt_state, batch)
    score = float(jnp.mean(jnp.argmax(logits_of(params, test[0]), -1) == test[1]))
    print(f"loss {jnp.mean(loss):.3f}, accuracy on the test set {score:.3f}")
    return score


if __name__ == "__main__":
    main()
