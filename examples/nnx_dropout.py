"""Flax NNX with dropout and batch statistics, which the model keeps by itself."""

import jax.numpy as jnp
import optax
from flax import nnx

import consensus_optax as co
from consensus_optax import training
from examples._common import batches, digits, num_steps


class MLP(nnx.Module):
    """One hidden layer, normalized over the examples of a row, then dropped out."""

    def __init__(self, rngs):
        self.hidden = nnx.Linear(64, 128, rngs=rngs)
        self.norm = nnx.BatchNorm(128, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.head = nnx.Linear(128, 10, rngs=rngs)

    def __call__(self, x):
        return self.head(self.dropout(nnx.relu(self.norm(self.hidden(x)))))


def loss_fn(model, batch):
    """The mean loss of a batch."""
    x, y = batch
    logits = model(x)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
    return loss, logits


@nnx.jit
def train_step(model, optimizer, batch):
    """One step, of parameters, statistics and random streams."""
    grad_fn = training.nnx_value_and_rows(loss_fn, has_aux=True, num_rows=4)
    (loss, logits), grads = grad_fn(model, batch)
    optimizer.update(model, grads)
    return loss.mean(), jnp.mean(jnp.argmax(logits, -1) == batch[1])


def main() -> float:
    """Trains; the accuracy on the test set."""
    train, test = digits()
    model = MLP(nnx.Rngs(0))
    tx = optax.chain(co.sign_consensus(), optax.adam(1e-2))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    for batch in batches(train, num_steps()):
        loss, accuracy = train_step(model, optimizer, batch)
    model.eval()
    score = float(jnp.mean(jnp.argmax(model(test[0]), -1) == test[1]))
    print(f"loss {loss:.3f}, accuracy {accuracy:.3f}, on the test set {score:.3f}")
    return score


if __name__ == "__main__":
    main()
