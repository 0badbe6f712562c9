"""Jobs that are drawn instead of counted: Optuna asks and is told, its study lies in the folder of the sweep.

What is drawn for a trial depends on the seed, its number and what is known of the others: a sampler that went on from a
state of its own would draw the same again after a restart.
"""

import logging
import math
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep

from dltrain.config.settings import Sweep
from dltrain.runtime.errors import ConfigError, first_line
from dltrain.sweeps.plan import Composer, ParsedOverride
from dltrain.sweeps.results import Metric

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

from dataclasses import dataclass

from dltrain.commands.jobs import JobResult
from dltrain.config.composition import Composed
from dltrain.sweeps import plan
from dltrain.sweeps.journal import Entry, Journal
from dltrain.sweeps.plan import PlannedJob

OF_PRUNING = {"median": "MedianPruner", "halving": "SuccessiveHalvingPruner"}


def require() -> None:
    """Raise ConfigError where Optuna is not installed."""
    try:
        import optuna
    except ImportError as error:
        raise ConfigError("sweep.search: needs Optuna; in dltrain's checkout: pip install '.[search]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)


class Space:
    """What the words of a sweep leave open: constant words, and a distribution for each that is drawn."""

    def __init__(self, composer: Composer) -> None:
        self.composer = composer
        self.overrides = composer.parsed()
        self.choices: dict[str, list[ParsedOverride]] = {}
        self.distributions: dict[str, BaseDistribution] = {}
        for override in self.overrides:
            if override.is_sweep_override():
                self._add(override)
        if not self.distributions:
            words = " ".join(composer.sweeping.overrides)
            raise ConfigError(f"{words}: nothing to search; give a key several values or an interval(low,high)")

    def _add(self, override: Override) -> None:
        from optuna import distributions

        key, value = override.get_key_element(), override.value()
        try:
            if isinstance(value, IntervalSweep):
                assert value.start is not None and value.end is not None
                whole = isinstance(value.start, int) and isinstance(value.end, int)
                kind: Any = distributions.IntDistribution if whole else distributions.FloatDistribution
                self.distributions[key] = kind(value.start, value.end, log="log" in value.tags)
            elif isinstance(value, RangeSweep) and (numbers := list(value.range())) and type(numbers[0]) is int:
                step = numbers[1] - numbers[0] if len(numbers) > 1 else 1
                low, high = min(numbers), max(numbers)
                self.distributions[key] = distributions.IntDistribution(low, high, step=abs(step))
            else:
                self.choices[key] = self.composer.words(override)
                texts = [word.text for word in self.choices[key]]
                self.distributions[key] = distributions.CategoricalDistribution(texts)
        except ValueError as error:
            raise ConfigError(f"{override.input_line}: {error}") from error

    def words(self, params: dict[str, Any]) -> list[ParsedOverride]:
        """The words of a job, with what was drawn for it. Raises ConfigError where that was drawn from other words."""
        return [
            self._drawn(override, params) if override.is_sweep_override() else self.composer.word(override)
            for override in self.overrides
        ]

    def _drawn(self, override: Override, params: dict[str, Any]) -> ParsedOverride:
        key = override.get_key_element()
        value, ends = params.get(key), _ends(self.distributions[key])
        if value not in ends and (
            key in self.choices or not isinstance(value, int | float) or not ends[0] < value < ends[1]
        ):
            said = f"a job of this sweep has {key}={value}" if key in params else "a job of this sweep has none"
            raise ConfigError(f"{override.input_line}: {said}; go on with the words it was started with")
        if key in self.choices:
            return next(word for word in self.choices[key] if word.text == value)
        if isinstance(value, float):  # six digits are enough to say it again
            value = min(max(float(f"{value:.6g}"), ends[0]), ends[1])
        return self.composer.word(override, value)

    def corners(self) -> list[dict[str, Any]]:
        """Parameters that show every choice and both ends of every interval: what can be checked beforehand."""
        ends = {key: _ends(distribution) for key, distribution in self.distributions.items()}
        first = {key: values[0] for key, values in ends.items()}
        return [first, *(first | {key: value} for key, values in ends.items() for value in values[1:])]


def _ends(distribution: Any) -> list[Any]:
    return list(distribution.choices) if hasattr(distribution, "choices") else [distribution.low, distribution.high]


class Search:
    """A study of `settings.trials` trials in `folder`; the number of a trial is that of its job."""

    def __init__(self, folder: Path, settings: Sweep, space: Space, metric: Metric) -> None:
        import optuna

        self.optuna, self.folder, self.settings, self.space, self.metric = optuna, folder, settings, space, metric
        direction: Any = "minimize" if metric.smaller_is_better else "maximize"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self.study = optuna.create_study(
                storage=f"sqlite:///{(folder / 'study.db').absolute()}",
                study_name="dltrain",
                direction=direction,
                load_if_exists=True,
                pruner=self._pruner(),
            )
        if self.study.direction.name.lower() != direction:
            raise ConfigError(f"sweep.direction={direction}: the study in {folder} has another. Start a new sweep")

    def _pruner(self) -> Any:
        if self.settings.pruner is None:
            return self.optuna.pruners.NopPruner()
        return getattr(self.optuna.pruners, OF_PRUNING[self.settings.pruner])()

    def _sampler(self, number: int) -> Any:
        seed = (self.settings.seed * 1_000_003 + number) % 2**32
        if self.settings.search == "random":
            return self.optuna.samplers.RandomSampler(seed=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", self.optuna.exceptions.ExperimentalWarning)
            return self.optuna.samplers.TPESampler(seed=seed, constant_liar=True)  # others run at the same time

    def trials(self) -> "list[FrozenTrial]":
        return self.study.get_trials(deepcopy=False)

    def ask(self, known: Collection[int]) -> tuple[int, dict[str, Any]] | None:
        """Number and parameters of a further job; None when there are enough. `known` are those that have a job."""
        # A kill between asking and planning leaves a trial without a job: it comes first.
        begun = [trial for trial in self.trials() if not trial.state.is_finished() and trial.number not in known]
        number = begun[0].number if begun else len(self.trials())
        if number >= self.settings.trials:
            return None
        if number in known:
            raise ConfigError(f"{self.folder / 'study.db'}: does not know all jobs of this sweep. Start a new one")
        self.study.sampler = self._sampler(number)
        trial = self.optuna.Trial(self.study, begun[0]._trial_id) if begun else self.study.ask()
        try:  # what `ask` does with distributions; of a trial that was begun it completes what is drawn already
            return number, {key: trial._suggest(key, it) for key, it in self.space.distributions.items()}
        except ValueError as error:
            raise ConfigError(f"{self.folder}: its study has drawn from other values: {first_line(error)}") from error

    def judge(self, number: int, step: int, figures: dict[str, float]) -> str:
        """`pruned` where a job is not worth to go on with, by the metric after an epoch."""
        split, _, name = self.metric.name.partition("_")
        if self.settings.pruner is None or split != "val" or not math.isfinite(figures.get(name, math.nan)):
            return ""
        if self.trials()[number].state.is_finished():  # it has failed before, and is run again for the table
            return ""
        trial = self.optuna.Trial(self.study, self.trials()[number]._trial_id)
        trial.report(figures[name], step)
        return "pruned" if trial.should_prune() else ""

    def tell(self, number: int, figures: dict[str, float], status: str, *, failed: bool) -> None:
        """How a job has ended; one that was told before is left as it is."""
        states = self.optuna.trial.TrialState
        if number >= len(self.trials()) or self.trials()[number].state.is_finished():
            return
        value = figures.get(self.metric.name, math.nan)
        if failed or not math.isfinite(value):
            self.study.tell(number, state=states.FAIL)
        elif status == "pruned":
            self.study.tell(number, state=states.PRUNED)
        else:
            self.study.tell(number, value)


@dataclass
class TrialSource:
    """Further jobs of a sweep, each planned when there is room for it; the study is told how they end."""

    command: str
    search: Search
    composer: Composer
    journal: Journal
    typed: plan.TrustedOverrides | None

    def planned(self, params: dict[str, Any]) -> PlannedJob:
        """The job with these parameters; what is wrong with it the job itself tells, unless it is not to be trusted."""
        composed = self.composer.compose(self.search.space.words(params))
        planned, faults = plan.check(composed, self.command, self.typed)
        if self.typed is not None and faults:
            raise ConfigError("\n".join(faults))
        return planned

    def draw(self) -> tuple[Entry, Composed] | None:
        """A further job, in the journal; None when there are enough."""
        asked = self.search.ask(self.journal.entries)
        if asked is None:
            return None
        number, params = asked
        planned = self.planned(params)
        self.journal.plan([plan.entry(number, planned, params)])
        return self.journal.entries[number], planned.composed

    def judge(self, number: int, epoch: float, values: dict[str, float]) -> str:
        return self.search.judge(number, round(epoch), values)

    def tell(self, number: int, outcome: JobResult) -> None:
        self.search.tell(number, outcome.metrics, outcome.status, failed=outcome.failed)

    def tell_all(self) -> None:
        """Tell the study what the journal knows: a kill may have come in between."""
        for number, entry in self.journal.entries.items():
            if entry.outcome is not None and not entry.outcome.interrupted:
                self.tell(number, entry.outcome)
