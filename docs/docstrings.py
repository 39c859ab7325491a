"""How our docstrings become pages: labels of their own, formulas without a script."""

import html
import re
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError, latex2mathml
from sphinx.util import logging

LOGGER = logging.getLogger(__name__)

# Paragraphs of our docstrings begin with these, without a blank line between them.
LABELS = (
    "Also known as|Guarantees|Edge cases|Cost|References|Source|``weights``|``values``"
)
LABEL = re.compile(rf"^({LABELS}):(?=\s|$)")
# What docutils does not know, and what comes near to it; delimiters stretch anyhow.
UNKNOWN = {
    r"\\[bB]igg?[lrm]?(?![a-zA-Z])": "",
    r"\\[lr]Vert\b": r"\\|",
    r"\\dots\b": r"\\ldots",
    r"\\texttt\b": r"\\text",
    r"\\textstyle\b": "",
    r"\\([td]?frac)(\w)(\w)": r"\\\1{\2}{\3}",
}


def paragraphs(
    app: Any, what: str, name: str, obj: Any, options: Any, lines: Any
) -> None:
    """A paragraph for each label, in bold; of a room its first sentence alone."""
    del app, name, obj, options
    if what == "module":
        del lines[lines.index("") if "" in lines else len(lines) :]
        return
    told: list[str] = []
    for line in lines:
        if told and told[-1] == "Returns:":  # ahead of a colon napoleon sees a type
            line = re.sub(r"^( *)(?=\S.*:)", r"\1: ", line)
        label = LABEL.match(line)
        if label and told and told[-1]:
            told.append("")
        bold = label[1] if label and label[1].startswith("`") else ""
        text = line if bold else LABEL.sub(r"**\1:**", line)
        told.append(text)
    lines[:] = told


def is_a_field(
    app: Any, what: str, name: str, obj: Any, skip: bool, options: Any
) -> bool | None:
    """Fields of tuples are left out: Attributes says what they are."""
    del app, what, name, options
    return skip or type(obj).__name__ == "_tuplegetter" or None


def known(text: str) -> str:
    """A formula in what docutils knows of LaTeX."""
    for pattern, replacement in UNKNOWN.items():
        text = re.sub(pattern, replacement, text)
    several = r"\\" in text and r"\begin" not in text
    return rf"\begin{{aligned}}{text}\end{{aligned}}" if several else text


def formula(writer: Any, node: Any, *, block: bool) -> None:
    """MathML, which browsers draw by themselves."""
    text = known(node.astext())
    try:
        tree = latex2mathml.tex2mathml(text, as_block=block)
    except (MathError, AttributeError) as error:
        LOGGER.warning("docutils cannot read the formula %r: %s", text, error)
        tree = html.escape(text)
    writer.body.append(f'<div class="math">{tree}</div>' if block else tree)


def inline_formula(writer: Any, node: Any) -> None:
    """In a line of text."""
    formula(writer, node, block=False)
    raise nodes.SkipNode


def displayed_formula(writer: Any, node: Any) -> None:
    """On a line of its own."""
    formula(writer, node, block=True)
    raise nodes.SkipNode


def setup(app: Any) -> dict[str, bool]:
    """For Sphinx."""
    app.connect("autodoc-process-docstring", paragraphs, priority=400)
    app.connect("autodoc-skip-member", is_a_field)
    app.add_html_math_renderer(
        "mathml", (inline_formula, None), (displayed_formula, None)
    )
    return {"parallel_read_safe": True}
