"""How many bytes does a device send in one reduction over N devices?

    python -m benchmarks.bytes

Counted in the compiled program, with N fake devices of this machine up to 8; beyond, by
the formula that the counted ones are checked against. One row of float32 on each; and a
step of the MLP with two rows on each of 8, which travel multiplied out or as factors.
"""

from __future__ import annotations

import os

if "device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, PartitionSpec

import consensus_optax as co
from benchmarks import _harness
from benchmarks._harness import Row
from benchmarks._traffic import bytes_sent
from benchmarks._workloads import Workload, mlp
from consensus_optax import compressors

SIZE, SMOKE_SIZE = 1_000_003, 1003  # parameters; prime to every number of devices
COUNTED, FORMULA = (2, 4, 8), (16, 32, 64)
MLP_ROWS, MLP_DEVICES = 16, 8
SIGN = compressors.scaled_sign()
BY_FORMULA = ("cosine_filter", "subspace_weighting (AdaCons)", "median")


QUANTIZED = compressors.stochastic_quantization
KEY = jax.random.key(0)
# Of the rows, or there and back.
WIRES = [
    ("int8", {"wire": QUANTIZED(8, KEY)}),
    ("int8 both ways", dict.fromkeys(("wire", "update_wire"), QUANTIZED(8, KEY))),
    ("int4 both ways", dict.fromkeys(("wire", "update_wire"), QUANTIZED(4, KEY))),
    ("sign both ways", dict.fromkeys(("wire", "update_wire"), SIGN)),
]

STEPS = {
    "mean": co.mean,
    "sign_consensus": co.sign_consensus,
    "cosine_filter": co.cosine_filter,
    "krum": lambda: co.krum(1),
    "median": co.median,
    "sign_vote": co.sign_vote,
}


def contestants() -> dict[str, Callable[[Any], Any]]:
    """Name to what happens inside ``shard_map``: a row (1, P) to an update (P,)."""

    def ours(reducer: Any, **options: Any) -> Callable[[Any], Any]:
        across = co.sharded(reducer, "data", **options)

        def reduce(row: Any) -> Any:
            params = jnp.zeros(row.shape[1:])
            return across.update(row, reducer.init(params), params)[0]

        return reduce

    return {
        "pmean": lambda row: lax.pmean(row[0], "data"),
        "AdaCons as published": adacons_as_published,
        "mean": ours(co.mean()),
        "sign_consensus": ours(co.sign_consensus()),
        "sign_consensus(quorum=0.8)": ours(co.sign_consensus(0.8)),
        "cosine_filter": ours(co.cosine_filter()),
        "subspace_weighting (AdaCons)": ours(co.subspace_weighting()),
        "krum": ours(co.krum(0)),
        "geometric_median": ours(co.geometric_median()),
        "median": ours(co.median()),
        "sign_vote": ours(co.sign_vote()),
        "cosine_filter, wire bfloat16": ours(
            co.cosine_filter(), wire_dtype=jnp.bfloat16
        ),
        **{f"krum, wire {name}": ours(co.krum(0), **both) for name, both in WIRES},
    }


def adacons_as_published(row: Any) -> Any:
    """Its communication alone: sum the rows, weigh by inner products, sum again."""
    gradient = row[0]
    total = lax.psum(gradient, "data")
    weight = jnp.vdot(gradient, total) / jnp.vdot(gradient, gradient)
    weight = weight / lax.psum(weight, "data")
    return lax.psum(weight * gradient, "data")


def compiled(reduce: Callable[[Any], Any], size: int, num_devices: int) -> str:
    """The program of one reduction."""
    given = jax.ShapeDtypeStruct((num_devices, size), jnp.float32)
    return _program(reduce, PartitionSpec("data"), (given,), num_devices)


def compiled_step(
    reducer: Any, workload: Workload, factored: bool, num_devices: int
) -> str:
    """The program of the gradients of every example and their reduction."""
    gradients = co.per_example_grad(workload.loss, materialize=not factored)
    across = co.sharded(reducer, "data")

    def step(params: Any, batch: Any) -> Any:
        rows = gradients(params, batch)
        return across.update(rows, reducer.init(params), params)[0]

    specs = PartitionSpec(), PartitionSpec("data")
    return _program(step, specs, (workload.params, workload.batch), num_devices)


def _program(step: Any, specs: Any, given: tuple[Any, ...], num_devices: int) -> str:
    """What runs on every device, whose result is the same on all of them."""
    mesh = jax.make_mesh(
        (num_devices,),
        ("data",),
        axis_types=(AxisType.Auto,),
        devices=jax.devices()[:num_devices],
    )
    mapped = jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=PartitionSpec())
    return jax.jit(mapped).lower(*given).compile().as_text()


def formula(size: int, count: int, extra_of_eight: float) -> float:
    """Two trips of P numbers, cut into N equal parts, and what grows as N x N.

    The rest is a few [N, N] Gramians, taken from what is counted at N = 8.
    """
    trips = 2 * 4 * -(-size // count) * (count - 1)
    return trips + extra_of_eight * (count / 8) ** 2


def run(smoke: bool = False) -> list[Row]:
    """One row for every contestant and number of devices."""
    size = SMOKE_SIZE if smoke else SIZE
    rows = []
    for name, reduce in contestants().items():
        sent: dict[int, tuple[float, str]] = {}
        for count in COUNTED:
            if not name.startswith("krum") or count > 2:
                sent[count] = bytes_sent(compiled(reduce, size, count), count), "HLO"
        if name in BY_FORMULA:
            extra = sent[8][0] - formula(size, 8, 0)
            sent |= {n: (formula(size, n, extra), "formula") for n in FORMULA}
        for count, (number, by) in sent.items():
            row = {"contestant": name, "params": size, "devices": count, "by": by}
            ratio = number / (2 * 4 * size * (count - 1) / count)
            rows.append(
                {"benchmark": "bytes", **row, "bytes": round(number), "ratio": ratio}
            )
    return rows + steps(smoke)


def steps(smoke: bool) -> list[Row]:
    """Rows of the MLP multiplied out and as factors, for one rule of each kind."""
    workload, count = mlp(MLP_ROWS, *([24, 16] if smoke else [])), MLP_DEVICES
    size = sum(leaf.size for leaf in jax.tree.leaves(workload.params))
    rows = []
    for name, make in STEPS.items():
        for travel, factored in (("multiplied out", False), ("factors", True)):
            sent = bytes_sent(compiled_step(make(), workload, factored, count), count)
            row = {"contestant": name, "params": size, "devices": count, "by": "HLO"}
            row |= {"workload": "mlp", "num_rows": MLP_ROWS, "rows": travel}
            ratio = sent / (2 * 4 * size * (count - 1) / count)
            rows.append(
                {"benchmark": "bytes", **row, "bytes": round(sent), "ratio": ratio}
            )
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Writes ``bytes.json`` and prints the table at N = 8."""
    args = _harness.parse(_harness.parser(__doc__), argv)
    rows = run(args.smoke)
    for row in rows:
        if row["devices"] == 8:
            name = f"{row['contestant']}, {row['rows']}" if "rows" in row else None
            print(
                f"{name or row['contestant']:32} {row['bytes']:>10} {row['ratio']:.4f}"
            )
    _harness.write("bytes", rows, _harness.environment(), args.out)


if __name__ == "__main__":
    main()
