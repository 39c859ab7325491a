"""A differential equation: its residual and its boundary values are losses of a PINN.

u'' = -pi^2 sin(pi x) on [0, 1] with u = 0 at both ends, so u = sin(pi x).
"""

import jax
import jax.numpy as jnp
import optax

from examples._common import num_steps


def u(params, x):
    """The network, of one point."""
    hidden = jnp.tanh(x * params["w"] + params["b"])
    return jnp.tanh(hidden @ params["m"]) @ params["v"]


def losses_fn(params, x):
    """Mean squares of what should be zero, inside and at the ends."""
    second = jax.vmap(jax.grad(jax.grad(u, 1), 1), (None, 0))(params, x)
    ends = jax.vmap(u, (None, 0))(params, jnp.array([0.0, 1.0]))
    residual = second + jnp.pi**2 * jnp.sin(jnp.pi * x)
    return {"inside": jnp.mean(residual**2), "ends": jnp.mean(ends**2)}


optimizer = optax.adam(3e-3)


@jax.jit
def step(params, opt_state, x):
    """One step."""
    total = lambda params: sum(losses_fn(params, x).values())
    losses, grads = losses_fn(params, x), jax.grad(total)(params)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, losses


def main() -> float:
    """Trains; one minus the relative error of the solution."""
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = {"w": (32,), "b": (32,), "m": (32, 32), "v": (32,)}
    normal = lambda key, shape: jax.random.normal(key, shape) / len(shape) ** 2
    params = {name: normal(key, shapes[name]) for key, name in zip(keys, shapes)}
    params = {**params, "m": params["m"] / 2, "v": params["v"] / 6}
    opt_state = optimizer.init(params)
    for number in range(num_steps(full=3000, smoke=1000)):
        x = jax.random.uniform(jax.random.fold_in(keys[3], number), (64,))
        params, opt_state, losses = step(params, opt_state, x)
    x = jnp.linspace(0, 1, 101)
    error = jax.vmap(u, (None, 0))(params, x) - jnp.sin(jnp.pi * x)
    score = float(1 - jnp.linalg.norm(error) / jnp.linalg.norm(jnp.sin(jnp.pi * x)))
    print(f"inside {losses['inside']:.4f}, one minus the relative error {score:.3f}")
    return score


if __name__ == "__main__":
    main()
