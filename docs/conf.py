"""Sphinx's settings; `make docs` builds the site in build/docs."""

import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "_ext")]

project = "jaxnlp"
author = "the jaxnlp maintainers"
project_copyright = author
extensions = ["myst_parser", "sphinx.ext.autodoc", "house"]
exclude_patterns = ["_ext"]

# Pages are Markdown. Links between pages are checked, anchors too, and a broken one is a warning (-W: an error).
myst_enable_extensions = ["dollarmath"]
myst_fence_as_directive = ["math"]
myst_heading_anchors = 4
myst_url_schemes = ["http", "https", "mailto", "repository"]
highlight_language = "none"

# Docstrings are plain text with `code`; _ext/house.py makes reStructuredText of them.
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
toc_object_entries = False  # thousands of names would fill every sidebar
maximum_signature_line_length = 100

linkcheck_ignore = ["repository:"]  # _ext/house.py checks them

html_theme = "furo"
html_title = "jaxnlp"
html_copy_source = False
html_show_sourcelink = False
