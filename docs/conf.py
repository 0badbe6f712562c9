"""Sphinx configuration: sphinx-build -W -n -b html docs docs/_build. Needs no network."""

import os
import sys
from pathlib import Path

DOCS = Path(__file__).parent
SOURCE = str(DOCS.parent / "src")
sys.path[:0] = [str(DOCS), SOURCE]  # build from a checkout without installing it
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [SOURCE, os.environ.get("PYTHONPATH")]))  # for the example runs

from dltrain import __version__  # noqa: E402

project = "dltrain"
release = __version__
extensions = ["myst_parser", "generated_parts"]
exclude_patterns = ["_build"]
smartquotes = False  # keep straight quotes in commands

myst_heading_anchors = 3
myst_enable_extensions = ["deflist"]

html_theme = "furo"
html_title = "dltrain"
html_show_sourcelink = False
html_show_copyright = False
html_theme_options = {"top_of_page_buttons": []}
