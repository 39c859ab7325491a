"""Saved by Orbax in the middle of training and restored: the state is plain arrays."""

import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp

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


optimizer = optax.chain(co.previous_update_filter(), optax.adam(1e-2))


@jax.jit
def step(params, opt_state, batch):
    """One step."""
    loss, grads = co.per_example_value_and_grad(loss_fn, num_rows=4)(params, batch)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, loss.mean()


def main() -> float:
    """Trains, with an interruption; the accuracy on the test set."""
    train, test = digits()
    one, other = jax.random.split(jax.random.key(0))
    w, v = jax.random.normal(one, (64, 128)), jax.random.normal(other, (128, 10))
    params = {"w": w / 8, "b": jnp.zeros(128), "v": v / 128**0.5}
    opt_state = optimizer.init(params)
    with tempfile.TemporaryDirectory() as folder, ocp.StandardCheckpointer() as disk:
        for number, batch in enumerate(batches(train, num_steps())):
            if number == num_steps() // 2:
                disk.save(Path(folder) / "half", (params, opt_state))
                disk.wait_until_finished()
                fresh = (params, optimizer.init(params))
                params, opt_state = disk.restore(Path(folder) / "half", fresh)
            params, opt_state, loss = step(params, opt_state, batch)
    score = float(jnp.mean(jnp.argmax(logits_of(params, test[0]), -1) == test[1]))
    print(f"loss {loss:.3f}, accuracy on the test set {score:.3f}")
    return score


if __name__ == "__main__":
    main()
