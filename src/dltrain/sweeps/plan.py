"""The words of a sweep to its jobs, all composed and checked before the first one runs. Imports no torch.

Hydra takes a twentieth of a second to compose a config. It is asked once for each combination of options (model=mlp,
optim=adam); jobs that differ only in values (optim.lr=0.1) get theirs on a copy.
"""

import copy
import functools
import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Sweep, Transformer

from dltrain.config import composition, saved_config, validation
from dltrain.config.composition import Composed, Sweeping
from dltrain.config.dotted import at
from dltrain.config.resolution import resolve
from dltrain.report.trackers import run_trackers
from dltrain.runtime import folders
from dltrain.runtime.errors import ConfigError
from dltrain.sweeps.executors import select
from dltrain.sweeps.journal import Entry

MOST_JOBS = 100_000


@dataclass(frozen=True)
class ParsedOverride:
    """`key=value` as it can be typed, and the value as plain data; `is_value` where it chooses no option of a group."""

    text: str
    key: str
    value: Any
    is_value: bool

    @property
    def is_of_sweep(self) -> bool:
        """Whether it is about the sweep, and no part of a job."""
        return self.key == "sweep" or self.key.startswith("sweep.")


@dataclass(frozen=True)
class PlannedJob:
    """A job of a sweep, checked; two with the same digest are the same run."""

    composed: Composed
    digest: str


class Composer:
    """Composes the jobs of one sweep."""

    def __init__(self, sweeping: Sweeping) -> None:
        self.sweeping = sweeping
        self.loader = sweeping.loader
        self.bases: dict[tuple[str, ...], Composed | None] = {}  # by the options chosen; None where Hydra must do each
        self._is_group = functools.cache(lambda key: bool(self.loader.get_group_options(key)))

    def parsed(self) -> list[Override]:
        """The words as Hydra's grammar reads them; of two for one key the last counts."""
        parser = OverridesParser.create(config_loader=self.loader)
        return list({it.get_key_element(): it for it in parser.parse_overrides(self.sweeping.overrides)}.values())

    def word(self, override: Override, element: Any = None) -> ParsedOverride:
        """A word that sweeps over nothing, or over `element` alone."""
        key = override.key_or_group
        is_value = override.package is None and not (
            override.is_delete() or key.startswith("hydra.") or self._is_group(key) or key == "experiment"
        )
        if not override.is_sweep_override():
            text = f"{override.get_key_element()}={override.get_value_element_as_str()}"
            return ParsedOverride(text.rstrip("=") if override.is_delete() else text, key, override.value(), is_value)
        text = f"{override.get_key_element()}={Transformer.str(element)}"
        return ParsedOverride(text, key, Override._convert_value(element), is_value)

    def words(self, override: Override) -> list[ParsedOverride]:
        """All that an override sweeps over, or the one that it is. Raises ConfigError for an interval."""
        if not override.is_sweep_override():
            return [self.word(override)]
        if not override.is_discrete_sweep():
            raise ConfigError(f"{override.input_line}: an interval needs sweep.search=random or tpe")
        return [self.word(override, element) for element in override.sweep_iterator()]

    def compose(self, words: Sequence[ParsedOverride]) -> Composed:
        """The config of a job. Raises what Hydra raises."""
        swept = [word for word in words if word.is_value and word.text not in self.constant]
        chosen = tuple(word.text for word in words if word not in swept)
        if chosen not in self.bases:
            composed = self._by_hydra(words)
            # A value that is not where it was put was put elsewhere by another word: the order of words matters then.
            is_plain = all(_is_plain(word.value) and _holds(composed.config, word) for word in swept)
            self.bases[chosen] = composed if is_plain else None
            return composed
        base = self.bases[chosen]
        if base is None or not all(_is_plain(word.value) for word in swept):
            return self._by_hydra(words)
        config = copy.deepcopy(base.config)
        for word in swept:
            node, _, last = word.key.rpartition(".")
            (at(config, node) if node else config)[last] = copy.deepcopy(word.value)
        return replace(base, config=config, overrides=_told(words, self.sweeping.implied))

    @functools.cached_property
    def constant(self) -> set[str]:
        """Words that are in every job."""
        return {self.word(it).text for it in self.parsed() if not it.is_sweep_override()}

    def _by_hydra(self, words: Sequence[ParsedOverride]) -> Composed:
        overrides = [*self.sweeping.hydra_overrides, *(word.text for word in words)]
        composed = composition.compose_job(self.loader, self.sweeping.config_name, overrides, self.sweeping.implied)
        if "logger" in composed.config and not any(key.partition(".")[0] == "logger" for key in composed.typed):
            composed.config["logger"] = {}  # thousands of jobs need no curves each, until somebody asks for them
        if "report" in composed.config and "report" not in composed.typed:
            composed.config["report"] = False
        return replace(composed, overrides=_told(words, self.sweeping.implied))


def _told(words: Iterable[ParsedOverride], implied: Sequence[str]) -> list[str]:
    return [word.text for word in words if not word.is_of_sweep and word.text not in implied]


def _is_plain(value: Any) -> bool:
    """Whether a value replaces what was there: values by name are joined with it, and references are followed."""
    return not isinstance(value, dict | Sweep) and "${" not in repr(value)


def _holds(config: dict[str, Any], word: ParsedOverride) -> bool:
    try:
        return bool(at(config, word.key) == word.value)
    except (LookupError, TypeError):  # the key counts the items of a list
        return False


def grid(composer: Composer) -> Iterator[list[ParsedOverride]]:
    """Every combination of what the words sweep over, the last word changing fastest."""
    overrides = composer.parsed()
    lists = [composer.words(override) for override in overrides]
    for override, found in zip(overrides, lists, strict=True):
        if len(found) > 1 and found[0].is_of_sweep:
            raise ConfigError(f"{override.input_line}: a sweep has one value of it")
    count = functools.reduce(lambda product, found: product * len(found), lists, 1)
    if not count:
        raise ConfigError(f"{' '.join(composer.sweeping.overrides)}: sweeps over nothing")
    if count > MOST_JOBS:
        raise ConfigError(f"{' '.join(composer.sweeping.overrides)}: are {count:,} jobs; at most {MOST_JOBS:,} are run")
    return map(list, itertools.product(*lists))


@dataclass(frozen=True)
class TrustedOverrides:
    """What is typed of a sweep whose words come from a file: the packages that are trusted, and all keys."""

    trust: Sequence[str]
    keys: Collection[str]


def checked(
    jobs: Iterable[Composed], command: str, typed: TrustedOverrides | None = None
) -> tuple[list[PlannedJob], int]:
    """Jobs without those that are there twice, and the number of these. Raises ConfigError with all faults of all.

    With `typed` they come from a file, which chooses no code of a person's own and no place that figures go to.
    """
    found: dict[str, PlannedJob] = {}
    faults: dict[str, list[int]] = {}
    total = 0
    for number, composed in enumerate(jobs):
        total += 1
        planned, own = check(composed, command, typed)
        for fault in own:
            faults.setdefault(fault, []).append(number)
        found.setdefault(planned.digest, planned)
    if faults:
        lines = [text if len(of) == total else f"{text} ({len(of)} of {total} jobs)" for text, of in faults.items()]
        raise ConfigError("\n".join(lines))
    if command in ("predict", "export"):
        _require_own_outputs([resolve(it.composed.config) for it in found.values()])
    return list(found.values()), total - len(found)


def _require_own_outputs(jobs: Iterable[dict[str, Any]]) -> None:
    """Raise ConfigError where several jobs would write one file, each over the one before."""
    jobs_of = Counter(str(values["output"] or values["format"]) for values in jobs)  # each format has its own file
    for output, count in jobs_of.items():
        if count > 1:
            told = f"output={output}: {count} jobs would write this file"
            raise ConfigError(f"{told}. Give each its own, such as 'output=${{ckpt}}/NAME'")


def check(composed: Composed, command: str, typed: TrustedOverrides | None = None) -> tuple[PlannedJob, list[str]]:
    """A job with its digest, and what is wrong with it."""
    try:
        values = resolve(composed.config)
        if typed is not None:
            saved_config.require_trusted(values, typed.trust, "this sweep")
            saved_config.require_typed_address(values, typed.keys, "this sweep")
        run_trackers.require(composed.config)
        if saved_config.custom_imports(values):
            select.all_threads()  # before it is imported
        faults = [str(fault) for fault in validation.find_problems(values, command, composed.origin)]
    except ConfigError as error:
        values, faults = composed.config, str(error).splitlines()
    kept = saved_config.without_added(values)
    kept = {key: value for key, value in kept.items() if key not in ("sweep", "trust", "logger", "report")}
    text = json.dumps(kept, sort_keys=True, default=str)
    return PlannedJob(composed, hashlib.sha256(text.encode()).hexdigest()), faults


def entry(number: int, planned: PlannedJob, params: dict[str, Any] | None = None) -> Entry:
    """The job as it goes into the journal; `params` are what was drawn for it."""
    overrides = planned.composed.overrides
    name = f"{number}_{folders.safe_name(','.join(overrides))}"
    return Entry(number, overrides, planned.digest, name, params=params or {})
