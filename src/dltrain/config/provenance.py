"""Find where a config value comes from: the command line, an experiment, an option's file, or the command's file."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dltrain.config.dotted import at, has
from dltrain.config.safe_yaml import UnsafeConfig, read_yaml
from dltrain.config.validation import TYPED

RESUMED = "the run to be resumed"


@dataclass(frozen=True)
class Provenance:
    """Origins of one composed config; called with a key it returns the place that sets its value, or an empty text."""

    command: str
    typed: Sequence[str]
    implied: Sequence[str]  # groups whose option is that of a run to be resumed
    sources: Sequence[Path]
    chosen: Mapping[str, str]
    _files: dict[Path, Any] = field(default_factory=dict, repr=False, compare=False)

    def __call__(self, key: str) -> str:
        parents = [key.rsplit(".", count)[0] for count in range(key.count(".") + 1)]
        if any(parent in self.typed and parent not in self.chosen for parent in parents):
            return TYPED
        group, _, last = key.partition(".")
        if last == "name" and group in self.chosen and (choice := self.of_option(group)):
            return choice
        return next((str(file) for file, _ in self._places(key)), "")

    def default(self, key: str) -> tuple[Any, str] | None:
        """Return the value of a key without overrides and experiments, and its file; None if it has none."""
        return next(((value, str(file)) for file, value in self._places(key, with_experiment=False)), None)

    def of_option(self, group: str) -> str:
        """Return the place that chose the option of a group."""
        if group in self.typed:
            return TYPED
        if group in self.implied:
            return RESUMED
        names = (f"experiment/{self.chosen.get('experiment')}.yaml", f"{self.command}.yaml")
        for file, values in (each for name in names for each in self._files_named(name)):
            defaults = values.get("defaults") if isinstance(values, dict) else None
            chosen = [str(key) for default in defaults or () if isinstance(default, dict) for key in default]
            if group in [key.rpartition("/")[2].rpartition(" ")[2] for key in chosen]:
                return str(file)
        return ""

    def _places(self, key: str, *, with_experiment: bool = True) -> Iterator[tuple[Path, Any]]:
        """Yield the files that set a key, and its value in each; the first wins: an experiment overrides groups."""
        group, _, last = key.partition(".")
        places = [
            *[(f"experiment/{self.chosen.get('experiment')}.yaml", key)] * with_experiment,
            (f"{group}/{self.chosen.get(group)}.yaml", last),
            (f"{group}/{last.partition('.')[0]}.yaml", last),  # one of several options of a group
        ]
        for name, path in [*places, (f"{self.command}.yaml", key)]:
            for file, values in self._files_named(name):
                if path and has(values, path):
                    yield file, at(values, path)

    def _files_named(self, name: str) -> Iterator[tuple[Path, Any]]:
        """Yield the files with a name, and their content."""
        for source in self.sources:
            file = source / name
            if file not in self._files:
                self._files[file] = None
                with contextlib.suppress(UnsafeConfig):
                    self._files[file] = read_yaml(file) if file.is_file() else None
            if self._files[file] is not None:
                yield file, self._files[file]
