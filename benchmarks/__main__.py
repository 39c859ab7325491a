"""Everything in turn, then the table and the plot: ``python -m benchmarks``.

Every script has a process of its own, so that none inherits another's memory or
threads, and torch is in none but the last three. Options are passed on to all.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

from benchmarks import _harness, _report

SCRIPTS = ("speed", "scans", "memory", "scaling", "rules", "bytes", "multihost")
SCRIPTS += ("long_sequences", "federated", "compression", "client_memory", "clients")
SCRIPTS += ("breakdown", "unlike_and_late", "gauss_newton", "uses", "how_many_rows")
SCRIPTS += ("tasks", "privacy", "loops", "peers")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the scripts; the number of those that failed."""
    options = _harness.parser(__doc__)
    options.add_argument("--only", choices=(*SCRIPTS, "report"), nargs="+")
    args, own = _harness.parse(options, argv), ["--out"]
    passed = [f"--repeats={args.repeats}", f"--seconds={args.seconds}"]
    passed += ["--smoke"] if args.smoke else []
    args.out.mkdir(parents=True, exist_ok=True)
    failed = 0
    for script in args.only or SCRIPTS:
        if script in SCRIPTS:
            command = [sys.executable, "-m", f"benchmarks.{script}"]
            done = subprocess.run([*command, *passed, *own, str(args.out)], check=False)
            failed += done.returncode != 0
    _report.write(args.out)
    return failed


if __name__ == "__main__":
    sys.exit(main())
