"""Several real processes on this machine that JAX knows as one program."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax

ROOT = Path(__file__).parents[1]
HEARTBEAT_S = 15  # a process not heard of for as long is dead


class Ended(NamedTuple):
    """What became of a process."""

    returncode: int | None  # negative: killed by that signal; None: killed here, late
    output: str  # standard output and errors
    seconds: float  # from the start of the first one to the end of this one


def join(address: str, num_processes: str, process_id: str) -> None:
    """Makes this process one of several, before anything else is asked of JAX.

    With a scheduler, or on TPUs, JAX finds out the arguments by itself. The timeouts
    are short, since the processes of one machine need not wait for a network.
    """
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        address,
        int(num_processes),
        int(process_id),
        cluster_detection_method="deactivate",
        initialization_timeout=60,
        heartbeat_timeout_seconds=HEARTBEAT_S,
        shutdown_timeout_seconds=HEARTBEAT_S,
    )


def run(
    module: str,
    num_processes: int,
    arguments: Sequence[str],
    *,
    timeout: float,
    devices: int = 1,
) -> list[Ended]:
    """Runs ``python -m module ADDRESS NUM_PROCESSES PROCESS_ID arguments``, N times.

    Args:
      module: what calls :func:`join` with its first three arguments.
      num_processes: how many.
      arguments: the others, the same for all.
      timeout: seconds after which whatever still runs is killed.
      devices: of each process, on its CPU.

    Returns:
      How each ended, in the order of their numbers; none is left running.
    """
    address = f"127.0.0.1:{_free_port()}"
    start, running, ended = time.monotonic(), {}, {}
    with tempfile.TemporaryDirectory() as folder:
        logs = [Path(folder) / f"{number}.log" for number in range(num_processes)]

        def end(number: int, returncode: int | None) -> None:
            text = logs[number].read_text(encoding="utf-8", errors="replace")
            ended[number] = Ended(returncode, text, time.monotonic() - start)

        try:
            for number, log in enumerate(logs):
                command = [sys.executable, "-m", module, address, str(num_processes)]
                with log.open("w", encoding="utf-8") as sink:
                    running[number] = subprocess.Popen(
                        [*command, str(number), *arguments],
                        cwd=ROOT,
                        env=_environment(devices),
                        stdin=subprocess.DEVNULL,
                        stdout=sink,
                        stderr=subprocess.STDOUT,
                    )
            while running and time.monotonic() - start < timeout:
                for number in [n for n in running if running[n].poll() is not None]:
                    end(number, running.pop(number).returncode)
                time.sleep(0.02)
        finally:
            for process in running.values():
                process.kill()
                process.wait()
        for number in running:
            end(number, None)
    return [ended[number] for number in range(num_processes)]


def checked(ended: Sequence[Ended]) -> list[str]:
    """What the processes have printed.

    Raises:
      RuntimeError: one of them failed; with all they said.
    """
    if any(one.returncode != 0 for one in ended):
        told = [f"[{i}] {one.returncode}\n{one.output}" for i, one in enumerate(ended)]
        raise RuntimeError("\n".join(told))
    return [one.output for one in ended]


def _environment(devices: int) -> dict[str, str]:
    """Ours, but for the devices and a thread of linear algebra for each process."""
    flag = f"--xla_force_host_platform_device_count={devices}"
    flags = f"{os.environ.get('XLA_FLAGS', '')} {flag}"  # the last one counts
    own = {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "OPENBLAS_NUM_THREADS": "1"}
    return os.environ | own


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
