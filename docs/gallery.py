"""The page of the examples, written from their docstrings when the site is built."""

import ast
from pathlib import Path

HEAD = """# Gallery

Every example is one file that runs as it is, in CI too:
`python examples/NAME.py`. Each is a plain training loop into which a rule went.
"""


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
            f"```{{literalinclude}} ../examples/{path.name}\n:language: python\n```\n"
        )
    if len(parts) == 1:
        parts.append("There are none in this copy of the project.\n")
    page.write_text("\n".join(parts), encoding="utf-8")
