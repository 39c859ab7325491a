"""Flax linen: the loop of its documentation, its loss closed over the batch no more."""

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax.training.train_state import TrainState

import consensus_optax as co
from examples._common import batches, digits, num_steps


class CNN(nn.Module):
    """Two layers on pictures of 8 x 8."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(16, (3, 3))(x.reshape(-1, 8, 8, 1)))
        x = nn.avg_pool(x, (2, 2), strides=(2, 2))
        return nn.Dense(10)(x.reshape(len(x), -1))


@jax.jit
def train_step(state, batch):
    """One step; metrics are those of the batch."""

    def loss_fn(params, batch):
        x, y = batch
        logits = state.apply_fn({"params": params}, x)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
        return loss, logits

    grad_fn = co.per_example_value_and_grad(loss_fn, has_aux=True, num_rows=4)
    (loss, logits), grads = grad_fn(state.params, batch)
    accuracy = jnp.mean(jnp.argmax(logits, -1) == batch[1])
    return state.apply_gradients(grads=grads), loss, accuracy


def main() -> float:
    """Trains; the accuracy on the test set."""
    train, test = digits()
    model = CNN()
    state = TrainState.create(
        apply_fn=model.apply,
        params=model.init(jax.random.key(0), train[0][:1])["params"],
        tx=optax.chain(co.sign_consensus(0.75), optax.adam(1e-2)),
    )
    for batch in batches(train, num_steps()):
        state, loss, accuracy = train_step(state, batch)
    logits = model.apply({"params": state.params}, test[0])
    score = float(jnp.mean(jnp.argmax(logits, -1) == test[1]))
    print(f"loss {jnp.mean(loss):.3f} ({accuracy:.3f} right), test set {score:.3f}")
    return score


if __name__ == "__main__":
    main()
