"""Several processes share the questions, each a part of every question's arms."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence


def finished(arguments: Sequence[str], jobs: int) -> bool:
    """Whether so many processes ran to their end.

    They share one terminal, which Ctrl-C reaches: each ends after what it was told, and
    this one waits for all of them before it does.

    Args:
      arguments: of ``python -m benchmarks.quality``, all but the part.
      jobs: how many processes, each with one core's threads.
    """
    command = [sys.executable, "-m", "benchmarks.quality", *arguments]
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false"
    own = {**os.environ, "XLA_FLAGS": flags.strip()}
    parts = [f"{place}/{jobs}" for place in range(1, jobs + 1)]
    running = [subprocess.Popen([*command, "--part", part], env=own) for part in parts]
    try:
        ended = [process.wait() for process in running]
    except KeyboardInterrupt:
        for process in running:
            process.wait()
        raise
    return not any(ended)
