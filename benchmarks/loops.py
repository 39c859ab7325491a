"""How many lines adopt the library, and do the loops train as they did?

    python -m benchmarks.loops --only linen nnx_dropout

Every example beside its plain loop, the same number of steps of each. Writes
``loops.json`` and ``loops.md``. What is not installed is skipped with a message.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import _harness
from benchmarks._harness import Row

EXAMPLES = Path(__file__).parents[1] / "examples"
NAMES = sorted(path.stem for path in EXAMPLES.glob("[!_]*.py"))
NEEDS = {"haiku": "haiku", "tensorboard": "tensorboardX"}  # modules that may lack


def changed_lines(name: str) -> int:
    """How many lines a reader of the plain loop writes anew, or takes away."""
    plain, own = (
        (folder / f"{name}.py").read_text(encoding="utf-8").splitlines()
        for folder in (EXAMPLES / "plain", EXAMPLES)
    )
    found = list(difflib.unified_diff(plain, own, lineterm="", n=0))[2:]
    written = [line for line in found if line[0] in "+-" and line[1:].strip()]
    return max(sum(line[0] == sign for line in written) for sign in "+-")


def run(name: str) -> Row:
    """One example and its plain loop."""
    of = lambda module: importlib.import_module(module).main()
    return {
        "benchmark": "loops",
        "contestant": name,
        "changed_lines": changed_lines(name),
        "plain": round(of(f"examples.plain.{name}"), 4),
        "own": round(of(f"examples.{name}"), 4),
        "smoke": bool(os.environ.get("CONSENSUS_OPTAX_SMOKE")),
    }


def table(rows: Sequence[Row]) -> str:
    """Markdown: an example in each line."""
    lines = ["| loop | lines changed | as it was, % | with rows, % |", "|---" * 4 + "|"]
    for row in rows:
        name = row["contestant"]
        link = f"[{name.replace('_', ' ')}](examples/{name}.py)"
        numbers = f"{100 * row['plain']:.1f} | {100 * row['own']:.1f}"
        lines.append(f"| {link} | {row['changed_lines']} | {numbers} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Writes ``loops.json`` and ``loops.md``."""
    options = _harness.parser(__doc__)
    options.add_argument("--only", choices=NAMES, nargs="+", default=NAMES)
    args = _harness.parse(options, argv)
    if args.smoke:
        os.environ["CONSENSUS_OPTAX_SMOKE"] = "1"
    rows = []
    for name in args.only:
        if importlib.util.find_spec(NEEDS.get(name, "jax")) is None:
            print(f"skipped: {name} (not installed)", file=sys.stderr)
            continue
        rows.append(run(name))
        _harness.show(rows[-1])
    _harness.write("loops", rows, _harness.environment("flax", "equinox"), args.out)
    (args.out / "loops.md").write_text(table(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
