"""Does a device give the CPU's answer, rule by rule? Where both are, say a GPU's host.

    JAX_PLATFORMS=cuda,cpu python -m tests._agreement

Every rule of the zoo on rows of a small model, of which most parameters stay factored:
rows as they come, one of them far away, some of them equal and one broken. Each update
is compared with the other's and with the NumPy reference of the zoo in float64.
"""

import argparse
import functools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import consensus_optax as co
from benchmarks import _harness
from tests.zoo import ZOO

B, T, WORDS, WIDTH, INNER = 8, 4, 32, 16, 24
RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"


def model():
    """A look-up, a weight of four terms a row, one of a single term, a vector."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape) / shape[0] ** 0.5
    params = {
        "embedding": draw(WORDS, WIDTH),
        "inner": draw(WIDTH, INNER),
        "readout": draw(INNER, 5),
        "shift": draw(5),
    }
    return jax.tree.map(lambda x: x.astype(np.float32), params)


def loss(params, batch):
    """Of one example: tokens (1, T) and a target (1, 5). Its products are exact."""
    tokens, target = batch
    product = functools.partial(jnp.matmul, precision="highest")
    h = jnp.tanh(product(params["embedding"][tokens], params["inner"])).mean(1)
    out = product(h, params["readout"]) + params["shift"][None]
    return jnp.sum((out - target) ** 2)


def batches():
    """By name: tokens (B, T) and targets (B, 5)."""
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, WORDS, (B, T))
    target = (rng.normal(size=(B, 5)) + 2).astype(np.float32)
    far, broken = target.copy(), target.copy()
    far[3] *= 1e2
    broken[5] = np.nan
    same = tokens.copy()
    same[1:3], broken[1:3] = tokens[0], target[0]
    broken[0] = target[0]
    return {
        "plain": (tokens, target),
        "far": (tokens, far),
        "equal and broken": (same, broken),
    }


def of_rule(row, params, given):
    """What each device, and the reference, makes of every batch."""
    rule = row.make(B)

    def step(params, rows):
        update, state = rule.update(rows, rule.init(params), params)
        known = co.metrics(state)
        return update, {key: known[key] for key in ("ready", "num_present")}

    told = {}
    for device, rows in given.items():
        run = jax.jit(step)
        with jax.default_device(device):
            told[device.platform] = [jax.device_get(run(params, x)) for x in rows]
    return told


def flat(tree):
    """All leaves in one, in float64."""
    leaves = [np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)]
    return np.concatenate(leaves)


def rows_of(devices):
    """One row for every rule and batch."""
    params, batch = model(), batches()
    make = jax.jit(co.per_example_grad(loss))
    given = {}
    for device in devices:
        with jax.default_device(device):
            given[device] = [make(params, jax.device_put(x)) for x in batch.values()]
    whole = [jax.tree.leaves(co.materialize(x)) for x in given[devices[-1]]]
    with ThreadPoolExecutor(8) as pool:
        told = list(pool.map(lambda row: of_rule(row, params, given), ZOO))
    for row, answers in zip(ZOO, told, strict=True):
        both = answers["cpu"], answers[devices[0].platform]
        for name, leaves, one, two in zip(batch, whole, *both, strict=True):
            yield {
                "benchmark": "agreement",
                "rule": str(row),
                "rows": name,
                **compared(flat(one[0]), flat(two[0]), wanted(row, leaves)),
                "decided_alike": jax.tree.map(int, one[1]) == jax.tree.map(int, two[1]),
            }


def wanted(row, leaves):
    """What the reference makes of the rows that are finite."""
    leaves = [np.asarray(x, np.float64).reshape(B, -1) for x in leaves]
    present = np.isfinite(np.concatenate(leaves, 1)).all(1)
    update = row.reference([x[present] for x in leaves], np.ones(present.sum()))
    return flat(update)


def compared(cpu, device, right):
    """Largest differences, relative to the largest entry."""
    size = np.abs(right).max() or 1.0
    pairs = {"apart": (cpu, device)}
    pairs |= {"cpu_error": (cpu, right), "device_error": (device, right)}
    gap = lambda x, y: float(f"{np.abs(x - y).max() / size:.2g}")
    return {name: gap(*pair) for name, pair in pairs.items()}


def main():
    """Prints what is furthest apart; writes ``agreement.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    devices = [jax.devices()[0], jax.devices("cpu")[0]]
    found = list(rows_of(devices))
    for row in sorted(found, key=lambda row: -row["apart"])[:12]:
        print({**row, **{k: f"{v:.1e}" for k, v in row.items() if type(v) is float}})
    print(len(found), all(row["decided_alike"] for row in found))
    env = _harness.environment()
    _harness.write("agreement", [{**row, **env} for row in found], {}, args.out)


if __name__ == "__main__":
    main()
