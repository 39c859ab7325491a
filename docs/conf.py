"""The site: ``make docs`` builds it into ``docs/_build/html``."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import gallery  # beside this file

import consensus_optax

project = "consensus_optax"
release = version = consensus_optax.__version__
html_title = f"consensus_optax {release}"
copyright = "the consensus_optax authors"  # noqa: A001

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "docstrings",  # beside this file
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build"]
html_math_renderer = "mathml"
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {"navigation_with_keys": True}
html_copy_source = False
html_show_sphinx = False
pygments_style = "friendly"

myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3

default_role = "literal"  # `name` in a docstring is code; :func: links
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_use_ivar = True
napoleon_attr_annotations = False  # the signature has them
python_use_unqualified_type_names = True
# Fields of several states share a name: a word that names one is no link.
suppress_warnings = ["ref.python"]


def setup(app: object) -> None:
    """The gallery lists what is in ``examples/`` when the site is built."""
    del app
    gallery.write(HERE / "gallery.md", HERE.parent / "examples")
