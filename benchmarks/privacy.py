"""What do private gradients cost, in time and memory, and in accuracy?

    python -m benchmarks.privacy --workload mlp cnn transformer

Steps of `private_sum` beside what exists for it, as ratios to the plain step, torch's
to torch's; and DP-SGD on the digits to one epsilon. What is not installed is skipped
with a message. Rows of other workloads stay in the results.
"""

from __future__ import annotations

import importlib
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import optax

import consensus_optax as co
from benchmarks import _harness, _private_digits, _steps, _workloads
from benchmarks._harness import Contestant, Row, compiled
from benchmarks._private_digits import CONTESTANTS, Setting
from benchmarks._steps import Step
from benchmarks._workloads import Workload
from benchmarks.peers import has, installed
from consensus_optax import privacy

CLIP, NOISE, MICROBATCH = 1.0, 1.0, 8
KNOWN = (*_workloads.NAMES, "digits")


def steps(work: Workload) -> Iterator[tuple[str, str, Step]]:
    """(name, side, step) of private gradients with noise, from (params, batch)."""
    key = jax.random.key(0)
    options = {"divisor": work.batch_size, "noise_multiplier": NOISE, "key": key}
    for name, more in {
        "private_sum": {},
        "private_sum, automatic": {"clipping": "automatic"},
        "private_sum, per leaf": {"per_leaf": True},
    }.items():
        rule = co.private_sum(CLIP, **options, **more)
        yield f"{name} [lazy]", "ours", _steps.reduced(work, rule, "lazy")
    rule = co.private_sum(CLIP, **options)
    few = _steps.reduced(work, rule, "microbatches", MICROBATCH)
    yield f"private_sum, microbatches of {MICROBATCH}", "ours", few
    yield "optax.contrib", "jax", _of_optax(work, key)
    if installed("jax_privacy"):
        # all rows at once, an MLP's take them half a minute; `peers.py` measures it
        for size in (MICROBATCH,) if work.name == "mlp" else (None, MICROBATCH):
            by = f", microbatches of {size}" if size else ""
            theirs = importlib.import_module("jax_privacy").clipped_grad
            yield f"jax_privacy{by}", "jax", _with_their_noise(theirs, work, size)
            ours = privacy.clipped_grad
            yield (
                f"privacy.clipped_grad{by}",
                "ours",
                _with_their_noise(ours, work, size),
            )


def _of_optax(work: Workload, key: jax.Array) -> Step:
    rows = _steps.stacked(work)
    rule = optax.contrib.differentially_private_aggregate(CLIP, NOISE, key)
    return lambda params, batch: rule.update(
        rows(params, batch), rule.init(params), params
    )


def _with_their_noise(clipped_grad: Any, work: Workload, size: int | None) -> Step:
    """A clipped gradient, and jax_privacy's noise."""
    grad = clipped_grad(
        work.loss,
        l2_clip_norm=CLIP,
        normalize_by=work.batch_size,
        microbatch_size=size,
    )
    noise = importlib.import_module("jax_privacy.noise_addition").gaussian_privatizer(
        stddev=NOISE * grad.sensitivity(), prng_key=jax.random.key(0)
    )
    return lambda params, batch: noise.update(grad(params, batch), noise.init(params))


def contestants(work: Workload) -> Iterator[Contestant]:
    """The plain step, and private ones; torch's last."""
    given = (work.params, work.batch)
    yield compiled("plain", _steps.plain(work), *given, compiles=2, side="jax")
    for name, side, step in steps(work):
        yield compiled(name, step, *given, side=side)
    if installed("torch") and installed("opacus"):
        theirs = importlib.import_module("benchmarks._torch_private")
        memory = importlib.import_module("benchmarks._torch_models").temporary_bytes
        for name, run in theirs.steps(work, CLIP, NOISE):
            facts = {"side": "torch", "temp_bytes": memory(run, work.param_bytes)}
            yield Contestant(name, run, facts, baseline="torch: plain")


def speed(work: Workload, repeats: int, seconds: float) -> list[Row]:
    """One interleaved run."""
    return _harness.measure(
        [*contestants(work)],
        repeats,
        seconds,
        benchmark="privacy",
        workload=work.name,
        batch_size=work.batch_size,
        param_bytes=work.param_bytes,
    )


def accuracy(setting: Setting) -> list[Row]:
    """DP-SGD on the digits, by everyone with the same batches."""
    if not installed("dp_accounting"):
        return []
    z = privacy.noise_multiplier_for(
        setting.epsilon, setting.sampling, delta=setting.delta
    )
    epsilon = privacy.epsilon_of(z, setting.sampling, delta=setting.delta)
    rows = []
    for name, make in CONTESTANTS.items():
        if name == "jax_privacy" and not installed(name):
            continue
        found = _private_digits.accuracies(make, setting, z)
        private = name != "without privacy"
        rows.append(
            {
                "benchmark": "privacy",
                "workload": "digits",
                "contestant": name,
                "epsilon": round(epsilon, 4) if private else None,
                "delta": setting.delta if private else None,
                "noise_multiplier": round(z, 4) if private else 0,
                "sampling": setting.sampling._asdict(),
                "accuracy": [round(x, 4) for x in found],
                "mean": round(statistics.mean(found), 4),
                "standard_error": round(_error(found), 4),
            }
        )
        _harness.show(rows[-1])
    return rows


def _error(values: Sequence[float]) -> float:
    """Of the mean over seeds."""
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0


def table(rows: Sequence[Row]) -> str:
    """Markdown: accuracy where training was, else time and memory to the plain step."""
    lines = ["| private gradients | " + " | ".join(_workloads.NAMES) + " | digits, % |"]
    lines.append("|---" * (len(_workloads.NAMES) + 2) + "|")
    cells: dict[str, dict[str, str]] = {}
    for row in rows:
        name = row["contestant"].removesuffix(" [lazy]")
        if row["workload"] == "digits":
            text = f"{100 * row['mean']:.1f} ± {100 * row['standard_error']:.1f}"
        else:
            memory = row.get("temp_above_plain_in_params")
            more = "" if memory is None else f", {memory:+.2g} P"
            text = f"×{row['ratio']:.3g}{more}"
        cells.setdefault(name, {})[row["workload"]] = text
    for name, own in cells.items():
        texts = [own.get(work, "-") for work in KNOWN]
        lines.append(f"| {name} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Writes ``privacy.json`` and ``privacy.md``."""
    options = _harness.parser(__doc__)
    options.add_argument("--workload", choices=KNOWN, nargs="+", default=KNOWN)
    args = _harness.parse(options, argv)
    setting = Setting()
    if args.smoke:
        sampling = setting.sampling._replace(num_steps=3)
        setting = setting._replace(sampling=sampling, seeds=2)
    fresh = []
    for name in args.workload:
        if name == "digits":
            fresh += accuracy(setting)
        else:
            work = _workloads.workload(name, args.smoke)
            fresh += speed(work, args.repeats, args.seconds)
    peers = ("jax_privacy", "dp-accounting", "torch", "opacus")
    env = _harness.environment(*(x for x in peers if has(x)))
    old = _harness.read("privacy", args.out)
    rows = [row for row in old if row["workload"] not in args.workload]
    rows = [*rows, *({**row, **env} for row in fresh)]
    rows.sort(key=lambda row: KNOWN.index(row["workload"]))
    _harness.write("privacy", rows, {}, args.out)
    (args.out / "privacy.md").write_text(table(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
