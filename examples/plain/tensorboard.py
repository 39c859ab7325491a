"""TensorBoard looks on: numbers of every step, in a folder of event files."""

import tempfile

import jax
import jax.numpy as jnp
import optax
from tensorboardX import SummaryWriter

from examples._common import batches, digits, num_steps


def logits_of(params, x):
    """One hidden layer."""
    return jax.nn.relu(x @ params["w"] + params["b"]) @ params["v"]


def loss_fn(params, batch):
    """The mean loss of a batch."""
    x, y = batch
    logits = logits_of(params, x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


optimizer = optax.adam(1e-2)


@jax.jit
def step(params, opt_state, batch):
    """One step, and what of it is shown."""
    loss, grads = jax.value_and_grad(loss_fn)(params, batch)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    shown = {"loss": loss.mean()}
    return optax.apply_updates(params, updates), opt_state, shown


def main(folder: str | None = None) -> float:
    """Trains; the accuracy on the test set."""
    train, test = digits()
    one, other = jax.random.split(jax.random.key(0))
    w, v = jax.random.normal(one, (64, 128)), jax.random.normal(other, (128, 10))
    params = {"w": w / 8, "b": jnp.zeros(128), "v": v / 128**0.5}
    opt_state = optimizer.init(params)
    with SummaryWriter(folder or tempfile.mkdtemp()) as writer:
        for number, batch in enumerate(batches(train, num_steps())):
            params, opt_state, shown = step(params, opt_state, batch)
            for name, value in jax.device_get(shown).items():
                writer.add_scalar(name, value, number)
    score = float(jnp.mean(jnp.argmax(logits_of(params, test[0]), -1) == test[1]))
    print(f"tensorboard --logdir {writer.logdir}: test set {score:.3f}")
    return score


if __name__ == "__main__":
    main()
