"""Renders self-contained HTML files: style, scripts and charts in one text.

A page may show an untrusted folder. All its content is escaped, and the Content Security Policy (level 2) of the page
lets a browser run only the two scripts below, and load nothing.
"""

import base64
import functools
import hashlib
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, TemplateError
from markupsafe import Markup

from dltrain import __version__
from dltrain.report.console import format_number
from dltrain.report.run_reader import is_finite
from dltrain.runtime import atomic_files
from dltrain.runtime.errors import OutputError

# What unexpected content of files raises: wrong types, missing keys, numbers of hundreds of digits, deep nesting.
UNFIT = (LookupError, ValueError, TypeError, AttributeError, ArithmeticError, RecursionError, TemplateError)
ASSETS = Path(__file__).parent
MARK = '<meta name="generator" content="dltrain '
VEGA = ASSETS / "vega.js"  # Vega, Vega-Lite and vega-embed in one; made by hatch_build.py when dltrain is installed


def render(template: str, **content: Any) -> str:
    """Return a page from one of the templates beside this file."""
    scripts = [_asset("vega.js"), _asset("page.js")] if VEGA.exists() else [_asset("page.js")]
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    page = _environment().get_template(template)
    return page.render(
        style=Markup(_asset("page.css")),
        scripts=[Markup(script) for script in scripts],
        policy=f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {allowed}",
        has_charts=VEGA.exists(),
        version=__version__,
        **content,
    )


def write(path: Path, text: str) -> None:
    """Write a page atomically. Raises OutputError if that fails or would replace a file that is not such a page."""
    if path.exists() and not _is_ours(path):
        raise OutputError(f"{path}: exists and is not a page of dltrain. Move it, or choose another file")
    atomic_files.atomic_write(path, text.encode(errors="backslashreplace"))


def _is_ours(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return MARK.encode() in file.read(2000)


@functools.cache
def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "percent": percent}
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "default": str}  # of the filter `tojson`
    return environment


def number(value: Any) -> str:
    """Return a number for a table; empty for null, NaN and infinity."""
    if is_finite(value):
        return format_number(value)
    return "" if value is None or isinstance(value, float) else str(value)  # for a missing key jinja raises


def percent(value: Any) -> str:
    """Return a fraction as a percentage with two decimals; empty for anything that is not a finite number."""
    return f"{100 * value:.2f} %" if is_finite(value) else ""
