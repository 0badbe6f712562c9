"""Builds what is no source: the script that draws the figures of a report."""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SCRIPT = "src/dltrain/report/html/vega.js"


class Figures(BuildHookInterface):  # type: ignore[type-arg]
    """Vega, Vega-Lite and vega-embed in one file: so that who installs dltrain needs no converter of 80 MB."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        import vl_convert

        script = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
        Path(self.root, SCRIPT).write_text(script, encoding="utf-8")
        build_data["artifacts"].append(SCRIPT)
