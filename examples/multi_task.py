"""Two tasks on one trunk: a step that opposes neither instead of one of their sum."""

import jax
import jax.numpy as jnp
import optax

import consensus_optax as co
from examples._common import batches, digits, num_steps


def outputs(params, x):
    """Which digit it is, and how much ink it takes."""
    hidden = jax.nn.relu(x @ params["w"] + params["b"])
    return hidden @ params["digit"], hidden @ params["ink"]


def losses_fn(params, batch):
    """The mean losses of a batch."""
    x, y = batch
    logits, ink = outputs(params, x)
    digit = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
    return {"digit": digit, "ink": jnp.mean((ink[:, 0] - x.sum(1)) ** 2)}


optimizer = optax.chain(co.upgrad(), optax.adam(1e-2))


@jax.jit
def step(params, opt_state, batch):
    """One step."""
    losses, grads = co.task_value_and_grad(losses_fn)(params, batch)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, losses


def main() -> float:
    """Trains; the accuracy on the test set."""
    train, test = digits()
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = {"w": (64, 128), "digit": (128, 10), "ink": (128, 1)}
    normal = lambda key, shape: jax.random.normal(key, shape) / shape[0] ** 0.5
    params = {name: normal(key, shapes[name]) for key, name in zip(keys, shapes)}
    params["b"] = jnp.zeros(128)
    opt_state = optimizer.init(params)
    for batch in batches(train, num_steps()):
        params, opt_state, losses = step(params, opt_state, batch)
    logits, _ = outputs(params, test[0])
    score = float(jnp.mean(jnp.argmax(logits, -1) == test[1]))
    print(f"ink {losses['ink']:.3f}, accuracy on the test set {score:.3f}")
    return score


if __name__ == "__main__":
    main()
