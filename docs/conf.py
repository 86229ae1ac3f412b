"""The book: `make docs`, offline, strict."""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import pages  # of the samplers and of the public objects

project = "scoreflow"
author = "The scoreflow developers"
html_title = "scoreflow"
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx-mathjax-offline",
    "sphinx_gallery.gen_gallery",
]
myst_enable_extensions = ["colon_fence", "dollarmath", "amsmath"]
myst_heading_anchors = 3
sphinx_gallery_conf = {
    "examples_dirs": ["../examples/tutorial", "../examples/gallery"],
    "gallery_dirs": ["tutorial", "gallery"],
    "filename_pattern": r"/(plot|\d)_",
    "within_subsection_order": "ExampleTitleSortKey",
    "show_signature": False,
    "min_reported_time": 3600,  # seconds of a machine say nothing elsewhere
    "capture_repr": (),
    "write_computation_times": False,
    "abort_on_example_error": True,
    "download_all_examples": False,
}
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["book.css"]
html_show_copyright = False
exclude_patterns = ["_build"]
templates_path = ["_templates"]
autosummary_context = {"public": pages.public()}
autosummary_filename_map = pages.files(pages.public())
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_use_param = False  # several names may share an entry
napoleon_custom_sections = [("Attributes", "params_style"), "Reference"]


def plain(app, what, name, obj, options, lines):
    """Docstrings as they are written: backticks are code, the rows of a table a list, signs of other markup themselves."""
    text = re.sub(r"^\| (.+?) \| (.+) \|$", r"- \1: \2", "\n".join(lines), flags=re.MULTILINE)
    text = re.sub(r"^- .*\n\|[-|]+\|\n", "", text, flags=re.MULTILINE)  # a table's head
    parts = re.split(r"(`+[^`]+`+)", text)
    parts[::2] = [re.sub(r"\||\*(?=\S)", r"\\\g<0>", text) for text in parts[::2]]
    parts[1::2] = [f"``{code.strip('`')}``\\ " for code in parts[1::2]]
    lines[:] = "".join(parts).split("\n")


def breakable(app, page, template, context, doctree):
    """A long name in the text may be broken after a slash, a colon, a dot or an underscore, and inside no word."""
    context["body"] = re.sub(
        r'(?<=<span class="pre">)[^<]{16,}',
        lambda name: re.sub(r"(?<=\w)(/|::|_|\.(?!py\b))(?=[A-Za-z])", r"\1<wbr>", name[0]),
        context.get("body", ""),
    )


def setup(app):
    app.connect("builder-inited", pages.write)
    app.connect("autodoc-process-bases", pages.bases)
    app.connect("autodoc-skip-member", pages.skip)
    app.connect("autodoc-process-docstring", plain, priority=400)  # before napoleon, which writes markup
    app.connect("html-page-context", breakable)
