"""How long does a reduction over several processes take, beside a plain ``pmean``?

    python -m benchmarks.multihost --size 1048576 --repeats 20

Four devices as one process and as four (gloo over the loopback); the reduction alone,
medians of interleaved runs. Collectives on CPUs copy memory, so that passes over the
rows, not bytes on a wire, are what is timed.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import _harness
from benchmarks._harness import Row

DEVICES = 4
SMOKE_SIZE = 2**10


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def started(
    what: str, num_processes: int, *options: str, devices: int = DEVICES
) -> Iterator[list[subprocess.Popen[str]]]:
    """Worker processes that share ``devices`` devices; none is left behind."""
    flag = f"--xla_force_host_platform_device_count={devices // num_processes}"
    environment = {**os.environ, "XLA_FLAGS": flag, "JAX_PLATFORMS": "cpu"}
    shared = [f"--processes={num_processes}", f"--port={free_port()}", *options]
    command = [sys.executable, "-m", "benchmarks._multihost_worker", what, *shared]
    workers = [
        subprocess.Popen(
            [*command, f"--process={index}"],
            cwd=Path(__file__).parents[1],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(num_processes)
    ]
    try:
        yield workers
    finally:
        for worker in workers:
            if worker.poll() is None:
                worker.kill()
            worker.communicate()


def run(size: int, repeats: int) -> list[Row]:
    """One row for every rule, for one process and for four."""
    rows = []
    for count in (1, DEVICES):
        options = (f"--size={size}", f"--repeats={repeats}")
        with started("time", count, *options) as workers:
            outputs = [worker.communicate() for worker in workers]
        if any(worker.returncode for worker in workers):
            raise RuntimeError("\n".join(error for _, error in outputs))
        shared = {"benchmark": "multihost", "processes": count, "devices": DEVICES}
        for line in filter(lambda x: x.startswith("{"), outputs[0][0].splitlines()):
            rows.append({**shared, "params": size, **json.loads(line)})
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Writes ``multihost.json`` and prints the table."""
    options = _harness.parser(__doc__)
    options.add_argument("--size", type=int, default=2**20, help="numbers of a row")
    args = _harness.parse(options, argv)
    rows = run(SMOKE_SIZE if args.smoke else args.size, args.repeats)
    for row in rows:
        name, ms, ratio = row["contestant"], row["ms"], row["ratio"]
        print(f"{row['processes']} {name:16} {ms:8.2f} ms {ratio:.2f}")
    _harness.write("multihost", rows, _harness.environment(), args.out)


if __name__ == "__main__":
    main()
