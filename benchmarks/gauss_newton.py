"""What does a Gauss-Newton step cost, with factored rows and with J multiplied out?

    python -m benchmarks.gauss_newton --repeats 9

The residuals of a regression by three dense layers, one row for each of B examples.
Beside the gradient of their mean square: `gauss_newton` on factored rows, on rows that
are multiplied out, and written by hand with ``jax.jacrev``: J as one matrix, its
Gramian, a Cholesky factorization. All give one update; that is looked at first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree

import consensus_optax as co
from benchmarks import _harness, _workloads
from benchmarks._harness import Contestant, Row, compiled
from benchmarks._workloads import Workload

SIZES, SMOKE_SIZES = (32, 128, 512, 1024), (4, 8)
DAMPING = 1e-2
Step = Callable[[Any, Any], Any]


def workload(batch_size: int, width: int = 256, inputs: int = 64) -> Workload:
    """A regression of one number: 100 thousand parameters at the default sizes."""
    work = _workloads.mlp(batch_size, width, inputs, classes=1)
    targets = jax.random.normal(jax.random.key(1), (batch_size,))
    loss = lambda params, batch: jnp.mean(residuals(params, batch) ** 2)
    return work._replace(loss=loss, batch=(work.batch[0], targets))


def residuals(params: Any, batch: Any) -> jax.Array:
    """What the model gives less what it should, (B,)."""
    x, targets = batch
    *hidden, last = params
    for layer in hidden:
        x = jnp.tanh(x @ layer["kernel"] + layer["bias"])
    return (x @ last["kernel"] + last["bias"])[:, 0] - targets


def ours(materialize: bool) -> Step:
    """`gauss_newton` on rows of residuals."""
    rule = co.gauss_newton(DAMPING)
    find = co.output_value_and_grad(residuals, materialize=materialize)

    def step(params: Any, batch: Any) -> Any:
        values, rows = find(params, batch)
        return rule.update(rows, rule.init(params), params, values=values)[0]

    return step


def by_hand(params: Any, batch: Any) -> Any:
    """The same of one matrix J, (B, P)."""
    flat, unravel = ravel_pytree(params)
    aims = residuals(params, batch)

    def one(flat: jax.Array, *example: jax.Array) -> jax.Array:
        return residuals(unravel(flat), [x[None] for x in example])[0]

    rows = jax.vmap(jax.grad(one), (None, 0, 0))(flat, *batch)
    product = lambda x, y: jnp.matmul(x, y, precision=lax.Precision.HIGHEST)
    damped = product(rows, rows.T) + DAMPING * jnp.eye(aims.shape[0])
    weights = jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(damped), aims)
    return unravel(product(weights, rows))


STEPS: dict[str, tuple[str, Step]] = {
    "gauss_newton [lazy]": ("ours", ours(materialize=False)),
    "gauss_newton [arrays]": ("ours", ours(materialize=True)),
    "vmap(grad), J J^T by hand": ("jax", by_hand),
}


def apart(work: Workload) -> float:
    """By how much updates of the contestants differ, relative to the largest entry."""
    found = [
        np.asarray(ravel_pytree(jax.jit(step)(work.params, work.batch))[0], float)
        for _, step in STEPS.values()
    ]
    return max(float(np.abs(x - found[-1]).max()) for x in found) / float(
        np.abs(found[-1]).max()
    )


def contestants(work: Workload) -> Iterator[Contestant]:
    """The gradient of the mean square, then steps of second order."""
    given = (work.params, work.batch)
    yield compiled("plain", jax.grad(work.loss), *given, compiles=2, side="jax")
    for name, (side, step) in STEPS.items():
        yield compiled(name, step, *given, side=side)


def run(work: Workload, repeats: int, seconds: float) -> list[Row]:
    """One interleaved run."""
    return _harness.measure(
        [*contestants(work)],
        repeats,
        seconds,
        benchmark="gauss_newton",
        workload="regression",
        batch_size=work.batch_size,
        param_bytes=work.param_bytes,
        apart=apart(work),
    )


def table(rows: Sequence[Row]) -> str:
    """Markdown: times the plain step; temporary memory in parameters."""
    sizes = dict.fromkeys(row["batch_size"] for row in rows)
    heads = " | ".join(f"B = {size}" for size in sizes)
    lines = [f"| times plain; temporary memory | {heads} |"]
    lines.append("|---" * (len(sizes) + 1) + "|")
    cells = {(row["contestant"], row["batch_size"]): row for row in rows}
    for name in dict.fromkeys(row["contestant"] for row in rows):
        own = [cells[name, size] for size in sizes]
        memory = [row["temp_bytes"] / row["param_bytes"] for row in own]
        pairs = zip(own, memory, strict=True)
        texts = [f"{row['ratio']:.2f}; {size:.1f} P" for row, size in pairs]
        lines.append(f"| {name} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Writes ``gauss_newton.json`` and ``gauss_newton.md``."""
    args = _harness.parse(_harness.parser(__doc__), argv)
    small = {"width": 8, "inputs": 4} if args.smoke else {}
    rows = []
    for size in SMOKE_SIZES if args.smoke else SIZES:
        rows += run(workload(size, **small), args.repeats, args.seconds)
    _harness.write("gauss_newton", rows, _harness.environment(), args.out)
    (args.out / "gauss_newton.md").write_text(table(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
