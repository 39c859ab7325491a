"""How do other packages do the same work, each against its own framework's plain step?

    pip install 'consensus_optax[peers]'      # CPU builds of torch suffice
    python -m benchmarks.peers --workload mlp --repeats 10

Same shapes, one run, in turns: torch's contestants are relative to torch's plain step
of the same round, JAX's to JAX's. What is not installed is skipped with a message.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from typing import Any

import jax
import optax

from benchmarks import _harness, _steps, _workloads
from benchmarks._harness import Contestant, Row, compiled
from benchmarks._steps import Step
from benchmarks._workloads import Workload

PACKAGES = ("torch", "torchjd", "gradient-agreement-filtering", "jax_privacy")
OURS = (
    "mean",
    "sign_consensus",
    "sign_consensus(quorum=0.8)",
    "cosine_filter",
    "subspace_weighting",
    "clip_examples, mean",
)
_CLIP = 1.0
_MICROBATCH = 8


def jax_contestants(work: Workload) -> Iterator[Contestant]:
    """The plain step, what exists for JAX, and ours."""
    given = (work.params, work.batch)
    yield compiled("plain", _steps.plain(work), *given, compiles=2, side="jax")
    for name, step in {
        "vmap(grad), min/max": _steps.stacked_min_max(work),
        "vmap(grad), Gramian": _steps.stacked_gramian(work),
        "optax differentially_private_aggregate": _private_aggregate(work),
        **_jax_privacy(work),
    }.items():
        yield compiled(name, step, *given, side="jax")
    for name in OURS:
        step = _steps.ours(work, name, "lazy")
        yield compiled(f"{name} [lazy]", step, *given, side="ours")


def _private_aggregate(work: Workload) -> Step:
    """Per-example clipping as optax has it, without noise."""
    rows = _steps.stacked(work)
    rule = optax.contrib.differentially_private_aggregate(_CLIP, 0.0, jax.random.key(0))

    def step(params: Any, batch: Any) -> Any:
        return rule.update(rows(params, batch), rule.init(params), params)

    return step


def _jax_privacy(work: Workload) -> dict[str, Step]:
    """Per-example clipping as jax_privacy has it, at once and in microbatches."""
    if not installed("jax_privacy"):
        return {}
    clipped_grad = importlib.import_module("jax_privacy").clipped_grad
    options = {"l2_clip_norm": _CLIP, "normalize_by": work.batch_size}
    return {
        "jax_privacy clipped_grad": clipped_grad(work.loss, **options),
        f"jax_privacy clipped_grad, microbatches of {_MICROBATCH}": clipped_grad(
            work.loss, microbatch_size=_MICROBATCH, **options
        ),
    }


def torch_contestants(work: Workload) -> Iterator[Contestant]:
    """Torch's plain step and what exists for torch; none without torch."""
    if not installed("torch"):
        return
    for name, step in importlib.import_module("benchmarks._torch_steps").steps(work):
        if isinstance(step, str):
            _skip(name, step)
        else:
            yield Contestant(name, step, {"side": "torch"}, baseline="torch: plain")


def installed(package: str) -> bool:
    """Whether a package can be imported; says so on standard error if it cannot."""
    if importlib.util.find_spec(package) is None:
        _skip(package, "not installed; the extra `peers` has it")
        return False
    return True


def _skip(name: str, reason: str) -> None:
    print(f"skipped: {name} ({reason})", file=sys.stderr)


def run(work: Workload, repeats: int, seconds: float) -> list[Row]:
    """One interleaved run of everything that is installed."""
    entries = [*jax_contestants(work), *torch_contestants(work)]
    if work.batch_size % _MICROBATCH:  # jax_privacy wants a divisor
        entries = [entry for entry in entries if "microbatches" not in entry.name]
    return _harness.measure(
        entries,
        repeats,
        seconds,
        benchmark="peers",
        workload=work.name,
        batch_size=work.batch_size,
        param_bytes=work.param_bytes,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Measures the chosen workloads and writes ``peers.json``."""
    options = _harness.parser(__doc__)
    options.add_argument("--workload", choices=_workloads.NAMES, nargs="+")
    args = _harness.parse(options, argv)
    rows = []
    for name in args.workload or _workloads.NAMES:
        rows += run(_workloads.workload(name, args.smoke), args.repeats, args.seconds)
    present = [name for name in PACKAGES if has(name)]
    _harness.write("peers", rows, _harness.environment(*present), args.out)


def has(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    main()
