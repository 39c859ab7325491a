"""The page of the examples, written from their docstrings when the site is built."""

import ast
import difflib
from pathlib import Path

HEAD = """# Gallery

Every example is one file that runs as it is, in CI too:
`python -m examples.NAME`. Each is an ordinary training loop, and what a rule changes
in it.
"""


def difference(plain: Path, own: Path) -> str:
    """What a reader of the plain loop changes, below its first lines."""
    before, after = (
        path.read_text(encoding="utf-8").splitlines() for path in (plain, own)
    )
    found = difflib.unified_diff(before, after, lineterm="", n=1)
    return "\n".join(line for line in found if line[:3] not in ("---", "+++"))


def write(page: Path, examples: Path) -> None:
    """Writes the page: the first lines of every example, and its text."""
    parts = [HEAD]
    for path in sorted(examples.glob("[!_]*.py")):
        text = path.read_text(encoding="utf-8")
        doc = ast.get_docstring(ast.parse(text)) or ""
        title, _, rest = doc.partition("\n")
        about = "\n".join(
            line for line in rest.splitlines() if not line.startswith("    ")
        )
        parts.append(
            f"## {path.stem}\n\n{title}\n\n{about.strip()}\n\n"
            f"```diff\n{difference(examples / 'plain' / path.name, path)}\n```\n\n"
            "The whole file:\n\n"
            f"```{{literalinclude}} ../examples/{path.name}\n:language: python\n```\n"
        )
    if len(parts) == 1:
        parts.append("There are none in this copy of the project.\n")
    page.write_text("\n".join(parts), encoding="utf-8")
