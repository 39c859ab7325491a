"""Two devices, each with rows of its own, for the bytes of one all-reduce."""

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import PartitionSpec as P

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


optimizer = optax.chain(co.sharded(co.sign_consensus(), "data"), optax.adam(1e-2))


def step(params, opt_state, batch):
    """One step of a device; parameters stay the same on all."""
    loss, grads = co.worker_value_and_grad(loss_fn, "data", num_rows=2)(params, batch)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    loss = lax.pmean(loss.mean(), "data")
    return optax.apply_updates(params, updates), opt_state, loss


def main() -> float:
    """Trains; the accuracy on the test set."""
    train, test = digits()
    mesh = jax.make_mesh((2,), ("data",), devices=jax.devices()[:2])
    specs = {"in_specs": (P(), P(), P("data")), "out_specs": P()}
    run = jax.jit(jax.shard_map(step, mesh=mesh, **specs))
    one, other = jax.random.split(jax.random.key(0))
    w, v = jax.random.normal(one, (64, 128)), jax.random.normal(other, (128, 10))
    params = {"w": w / 8, "b": jnp.zeros(128), "v": v / 128**0.5}
    opt_state = optimizer.init(params)
    for batch in batches(train, num_steps()):
        place = jax.NamedSharding(mesh, P("data"))
        batch = jax.device_put(batch, place)
        params, opt_state, loss = run(params, opt_state, batch)
        loss = float(loss)  # a CPU has few threads: one step at a time
    score = float(jnp.mean(jnp.argmax(logits_of(params, test[0]), -1) == test[1]))
    print(f"loss {loss:.3f}, accuracy on the test set {score:.3f}")
    return score


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 2)
    main()
