"""The book: `make docs`, offline, strict."""

import re

project = "scoreflow"
author = "The scoreflow developers"
html_title = "scoreflow"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx_mathjax_offline"]
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
html_theme = "furo"
exclude_patterns = ["_build"]
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_use_ivar = True


def plain(app, what, name, obj, options, lines):
    """Docstrings as they are written: single backticks are code, and a table is kept as text."""
    text = re.sub(r"(?<!`)`([^`]+)`(?!`)", r"``\1``", "\n".join(lines)).replace("|", r"\|")
    text = re.sub(r"``[^`]+``", lambda found: found[0].replace(r"\|", "|"), text)
    lines[:] = re.sub(r"(?<=[\w)])\*(?=[\w(])|\*(?=[a-z]+[,)])", r"\\*", text).split("\n")


def setup(app):
    app.connect("autodoc-process-docstring", plain, priority=900)
