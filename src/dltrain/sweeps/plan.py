"""Plan the jobs of a sweep from its overrides: all are composed and checked before the first runs. Imports no torch.

Hydra takes 50 ms for a config, so it composes one for each combination of options; jobs that differ in values only
(optim.lr=0.1) get a copy with theirs.
"""

import copy
import functools
import hashlib
import itertools
import json
import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Sweep, Transformer

from dltrain.config import composition, saved_config, validation
from dltrain.config.composition import Composed, Sweeping
from dltrain.config.dotted import at, has
from dltrain.config.resolution import resolve
from dltrain.report.trackers import run_trackers
from dltrain.runtime import folders
from dltrain.runtime.errors import ConfigError
from dltrain.sweeps.executors import select
from dltrain.sweeps.journal import Entry

MOST_JOBS = 100_000


@dataclass(frozen=True)
class ParsedOverride:
    """An override `key=value` with its value as plain data; `is_value` is False if it chooses an option of a group."""

    text: str
    key: str
    value: Any
    is_value: bool

    @property
    def is_for_sweep(self) -> bool:
        """True if the override concerns the sweep and not its jobs."""
        return self.key == "sweep" or self.key.startswith("sweep.")


@dataclass(frozen=True)
class PlannedJob:
    """A checked job of a sweep; jobs with the same digest are the same run."""

    composed: Composed
    digest: str


class Composer:
    """Composes the configs of a sweep's jobs."""

    def __init__(self, sweeping: Sweeping) -> None:
        self.sweeping = sweeping
        self.loader = sweeping.loader
        self.bases: dict[tuple[str, ...], Composed | None] = {}  # by options; None: Hydra composes each
        self._is_group = functools.cache(lambda key: bool(self.loader.get_group_options(key)))

    def parsed(self) -> list[Override]:
        """Parse the overrides by Hydra's grammar; the last one counts for each key."""
        overrides = OverridesParser.create(config_loader=self.loader).parse_overrides(self.sweeping.overrides)
        return list({override.get_key_element(): override for override in overrides}.values())

    def single(self, override: Override, element: Any = None) -> ParsedOverride:
        """Parse an override that does not sweep, or the one for an `element` of its sweep."""
        key = override.key_or_group
        is_value = override.package is None and not (
            override.is_delete() or key.startswith("hydra.") or self._is_group(key) or key == "experiment"
        )
        if not override.is_sweep_override():
            text = f"{override.get_key_element()}={override.get_value_element_as_str()}"
            return ParsedOverride(text.rstrip("=") if override.is_delete() else text, key, override.value(), is_value)
        text = f"{override.get_key_element()}={Transformer.str(element)}"
        return ParsedOverride(text, key, Override._convert_value(element), is_value)

    def expanded(self, override: Override) -> list[ParsedOverride]:
        """Return an override for each value that `override` sweeps over. Raises ConfigError for an interval."""
        if not override.is_sweep_override():
            return [self.single(override)]
        if not override.is_discrete_sweep():
            raise ConfigError(f"{override.input_line}: an interval needs sweep.search=random or tpe")
        return [self.single(override, element) for element in override.sweep_iterator()]

    def compose(self, overrides: Sequence[ParsedOverride]) -> Composed:
        """Compose the config of a job. Raises what Hydra raises."""
        swept = [override for override in overrides if override.is_value and override.text not in self.constant]
        chosen = tuple(override.text for override in overrides if override not in swept)
        if chosen not in self.bases:
            composed = self._by_hydra(overrides)
            # If the config lacks a value, another override has changed it: then the order of the overrides matters.
            is_plain = all(
                _is_plain(each.value) and has(composed.config, each.key) and at(composed.config, each.key) == each.value
                for each in swept
            )
            self.bases[chosen] = composed if is_plain else None
            return composed
        base = self.bases[chosen]
        if base is None or not all(_is_plain(override.value) for override in swept):
            return self._by_hydra(overrides)
        config = copy.deepcopy(base.config)
        for override in swept:
            node, _, last = override.key.rpartition(".")
            (at(config, node) if node else config)[last] = copy.deepcopy(override.value)
        return replace(base, config=config, overrides=self._of_job(overrides))

    @functools.cached_property
    def constant(self) -> set[str]:
        """The overrides that all jobs share."""
        return {self.single(override).text for override in self.parsed() if not override.is_sweep_override()}

    def _by_hydra(self, overrides: Sequence[ParsedOverride]) -> Composed:
        texts = [*self.sweeping.hydra_overrides, *(override.text for override in overrides)]
        composed = composition.compose_job(self.loader, self.sweeping.config_name, texts, self.sweeping.implied)
        if "logger" in composed.config and not any(key.partition(".")[0] == "logger" for key in composed.typed):
            composed.config["logger"] = {}  # thousands of jobs need no curves unless the user asks
        if "report" in composed.config and "report" not in composed.typed:
            composed.config["report"] = False
        return replace(composed, overrides=self._of_job(overrides))

    def _of_job(self, overrides: Iterable[ParsedOverride]) -> list[str]:
        own = (each for each in overrides if not each.is_for_sweep and each.key != "trust")  # which is of one start
        return [override.text for override in own if override.text not in self.sweeping.implied]


def _is_plain(value: Any) -> bool:
    """True if a value replaces the one before; a dict is merged into it, and a reference is resolved."""
    return not isinstance(value, dict | Sweep) and "${" not in repr(value)


def grid(composer: Composer) -> Iterator[list[ParsedOverride]]:
    """Return every combination of the swept values, the last override changing fastest. Raises ConfigError."""
    overrides = composer.parsed()
    choices = [composer.expanded(override) for override in overrides]
    for override, values in zip(overrides, choices, strict=True):
        if len(values) > 1 and values[0].is_for_sweep:
            raise ConfigError(f"{override.input_line}: must have a single value in a sweep")
    count, line = math.prod(map(len, choices)), " ".join(composer.sweeping.overrides)
    if not count:
        raise ConfigError(f"{line}: gives no jobs")
    if count > MOST_JOBS:
        raise ConfigError(f"{line}: gives {count:,} jobs; at most {MOST_JOBS:,} are allowed")
    return map(list, itertools.product(*choices))


@dataclass(frozen=True)
class TrustedOverrides:
    """What the user typed for a sweep from a file, which may choose no other code, nor an address for metrics."""

    trust: Sequence[str]  # packages
    keys: Collection[str]


def checked(
    jobs: Iterable[Composed], command: str, typed: TrustedOverrides | None = None
) -> tuple[list[PlannedJob], int]:
    """Return the jobs without duplicates, and how many those are. Raises ConfigError with all faults of all jobs."""
    unique: dict[str, PlannedJob] = {}
    faults: Counter[str] = Counter()  # the number of jobs that have each
    total = 0
    for composed in jobs:
        total += 1
        planned, job_faults = check(composed, command, typed)
        faults.update(job_faults)
        unique.setdefault(planned.digest, planned)
    if faults:
        lines = [text if of == total else f"{text} ({of} of {total} jobs)" for text, of in faults.items()]
        raise ConfigError("\n".join(lines))
    if command in ("predict", "export"):
        _require_separate_outputs([resolve(job.composed.config) for job in unique.values()])
    return list(unique.values()), total - len(unique)


def _require_separate_outputs(jobs: Iterable[dict[str, Any]]) -> None:
    """Raise ConfigError if several jobs would write the same file."""
    counts = Counter(str(values["output"] or values["format"]) for values in jobs)  # formats have different files
    for output, count in counts.items():
        if count > 1:
            message = f"output={output}: {count} jobs would write this file"
            raise ConfigError(f"{message}. Give each job its own file, such as 'output=${{ckpt}}/NAME'")


NOT_OF_JOB = ("sweep", "trust", "logger", "report", "tags", "note")  # keys that make no other job


def check(composed: Composed, command: str, typed: TrustedOverrides | None = None) -> tuple[PlannedJob, list[str]]:
    """Return a job with its digest, and the faults of its config."""
    try:
        values = resolve(composed.config)
        if typed is not None:
            saved_config.require_trusted(values, typed.trust, "this sweep")
            saved_config.require_typed_address(values, typed.keys, "this sweep")
        run_trackers.require(composed.config)
        if saved_config.custom_imports(values):
            select.all_threads()  # before the import
        faults = validation.find_problems(values, command, composed.origin)
    except ConfigError as error:
        values, faults = composed.config, str(error).splitlines()
    kept = {key: value for key, value in saved_config.without_added(values).items() if key not in NOT_OF_JOB}
    text = json.dumps(kept, sort_keys=True, default=str)
    return PlannedJob(composed, hashlib.sha256(text.encode()).hexdigest()), faults


def entry(number: int, planned: PlannedJob, params: dict[str, Any] | None = None) -> Entry:
    """Return the journal entry of a new job; `params` are the values that a search drew for it."""
    overrides = planned.composed.overrides
    name = f"{number}_{folders.safe_name(','.join(overrides))}"
    return Entry(number, overrides, planned.digest, name, params=params or {})
