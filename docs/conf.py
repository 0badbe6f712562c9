"""Sphinx builds the site from this folder: sphinx-build -W -n -b html docs docs/_build. It needs no network."""

import os
import sys
from pathlib import Path

DOCS = Path(__file__).parent
SOURCE = str(DOCS.parent / "src")
sys.path[:0] = [str(DOCS), SOURCE]  # a checkout builds without being installed
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [SOURCE, os.environ.get("PYTHONPATH")]))  # its runs too

from dltrain import __version__  # noqa: E402

project = "dltrain"
release = __version__
extensions = ["myst_parser", "generated_parts"]
exclude_patterns = ["_build"]
smartquotes = False  # quotes in commands are copied

myst_heading_anchors = 3
myst_enable_extensions = ["deflist"]

html_theme = "furo"
html_title = "dltrain"
html_show_sourcelink = False
html_show_copyright = False
html_theme_options = {"top_of_page_buttons": []}
