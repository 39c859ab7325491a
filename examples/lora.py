"""Low-rank adapters on a frozen network: rows are of the adapters alone."""

import jax.numpy as jnp
import optax
from flax import nnx

import consensus_optax as co
from consensus_optax import training
from examples._common import batches, digits, num_steps


class MLP(nnx.Module):
    """One hidden layer, each weight with an adapter."""

    def __init__(self, rngs):
        self.hidden = nnx.LoRALinear(64, 128, lora_rank=4, rngs=rngs)
        self.head = nnx.LoRALinear(128, 10, lora_rank=4, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.hidden(x)))


def loss_fn(model, batch):
    """The mean loss of a batch."""
    x, y = batch
    return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()


@nnx.jit
def pretrain_step(model, optimizer, batch):
    """An ordinary step, of all weights."""
    optimizer.update(model, nnx.grad(loss_fn)(model, batch))


@nnx.jit
def adapt_step(model, optimizer, batch):
    """A step of the adapters."""
    grad_fn = training.nnx_value_and_rows(loss_fn, wrt=nnx.LoRAParam, num_rows=2)
    loss, grads = grad_fn(model, batch)
    optimizer.update(model, grads)
    return loss.mean()


def main() -> float:
    """Learns digits, then digits upside down; the accuracy on the latter."""
    train, test = digits()
    model = MLP(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
    for batch in batches(train, num_steps()):
        pretrain_step(model, optimizer, batch)
    turn = lambda x: x[:, ::-1]
    tx = optax.chain(co.sign_consensus(), optax.adam(1e-2))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.LoRAParam)
    before = jnp.mean(jnp.argmax(model(turn(test[0])), -1) == test[1])
    for x, y in batches(train, num_steps()):
        loss = adapt_step(model, optimizer, (turn(x), y))
    score = float(jnp.mean(jnp.argmax(model(turn(test[0])), -1) == test[1]))
    print(f"loss {loss:.3f}, accuracy upside down {before:.3f}, then {score:.3f}")
    return score


if __name__ == "__main__":
    main()
