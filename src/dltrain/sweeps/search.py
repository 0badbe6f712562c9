"""Random and TPE search: Optuna draws the parameters of each job; its study is in the folder of the sweep.

A draw depends on the seed, the trial's number and other results, not on a sampler's state, lost in a restart.
"""

import logging
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep

from dltrain.commands.jobs import JobResult
from dltrain.config.composition import Composed
from dltrain.config.settings import Sweep
from dltrain.report.run_rows import Metric
from dltrain.runtime.errors import ConfigError, first_line
from dltrain.sweeps import plan
from dltrain.sweeps.journal import Entry, Journal
from dltrain.sweeps.plan import Composer, ParsedOverride, PlannedJob

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

OF_PRUNING = {None: "NopPruner", "median": "MedianPruner", "halving": "SuccessiveHalvingPruner"}


def require() -> None:
    """Raise ConfigError if Optuna is not installed."""
    try:
        import optuna
    except ImportError as error:
        raise ConfigError("sweep.search: needs Optuna; in dltrain's checkout: pip install -e '.[search]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)


class Space:
    """The search space of a sweep: its overrides, and a distribution for each that is drawn."""

    def __init__(self, composer: Composer) -> None:
        self.composer = composer
        self.overrides = composer.parsed()
        self.choices: dict[str, list[ParsedOverride]] = {}
        self.distributions: dict[str, BaseDistribution] = {}
        for override in self.overrides:
            if override.is_sweep_override():
                self._add(override)
        if not self.distributions:
            line = " ".join(composer.sweeping.overrides)
            raise ConfigError(f"{line}: nothing to search; give a key several values or an interval(low,high)")

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
                self.choices[key] = self.composer.expanded(override)
                texts = [choice.text for choice in self.choices[key]]
                self.distributions[key] = distributions.CategoricalDistribution(texts)
        except ValueError as error:
            raise ConfigError(f"{override.input_line}: {error}") from error

    def job_overrides(self, params: dict[str, Any]) -> list[ParsedOverride]:
        """Return the overrides of a job with drawn `params`. Raises ConfigError for params of another space."""
        return [self._of_job(override, params) for override in self.overrides]

    def _of_job(self, override: Override, params: dict[str, Any]) -> ParsedOverride:
        if not override.is_sweep_override():
            return self.composer.single(override)
        key = override.get_key_element()
        value, ends = params.get(key), _ends(self.distributions[key])
        is_between = key not in self.choices and isinstance(value, int | float) and ends[0] < value < ends[1]
        if value not in ends and not is_between:
            reason = f"a job of this sweep has {key}={value}" if key in params else "a job of this sweep lacks it"
            raise ConfigError(f"{override.input_line}: {reason}; continue with the overrides of the sweep")
        if key in self.choices:
            return next(choice for choice in self.choices[key] if choice.text == value)
        if isinstance(value, float):  # six digits are enough for an override
            value = min(max(float(f"{value:.6g}"), ends[0]), ends[1])
        return self.composer.single(override, value)

    def corners(self) -> list[dict[str, Any]]:
        """Return parameters that cover every choice and both ends of every interval, to be checked before the start."""
        ends = {key: _ends(distribution) for key, distribution in self.distributions.items()}
        first = {key: values[0] for key, values in ends.items()}
        return [first, *(first | {key: value} for key, values in ends.items() for value in values[1:])]


def _ends(distribution: Any) -> list[Any]:
    return list(distribution.choices) if hasattr(distribution, "choices") else [distribution.low, distribution.high]


@dataclass
class Search:
    """Draws further jobs of a sweep when an executor is free, and tells its study how they end."""

    folder: Path
    settings: Sweep
    space: Space
    metric: Metric
    journal: Journal
    typed: plan.TrustedOverrides | None  # of overrides that come from a file

    def __post_init__(self) -> None:
        import optuna

        self.optuna = optuna
        direction: Any = "minimize" if self.metric.smaller_is_better else "maximize"
        self.study = optuna.create_study(
            # The sweep's own lock guards it; SQLite's would fail on a file system without locks.
            storage=f"sqlite:///file:{quote(str((self.folder / 'study.db').absolute()))}?nolock=1&uri=true",
            study_name="dltrain",
            direction=direction,
            load_if_exists=True,
            pruner=getattr(optuna.pruners, OF_PRUNING[self.settings.pruner])(),
        )
        if self.study.direction.name.lower() != direction:
            problem = f"the study in {self.folder} has the other. Start a new sweep"
            raise ConfigError(f"sweep.direction={direction}: {problem}")

    def _sampler(self, number: int) -> Any:
        seed = (self.settings.seed * 1_000_003 + number) % 2**32
        if self.settings.search == "random":
            return self.optuna.samplers.RandomSampler(seed=seed)
        return self.optuna.samplers.TPESampler(seed=seed, constant_liar=True)  # other trials run at the same time

    def trials(self) -> "list[FrozenTrial]":
        return self.study.get_trials(deepcopy=False)

    def planned(self, params: dict[str, Any]) -> PlannedJob:
        """Compose a job. Its faults are left to the job to report, unless its overrides come from a file."""
        planned, faults = plan.check(self.space.composer.compose(self.space.job_overrides(params)), "train", self.typed)
        if self.typed is not None and faults:
            raise ConfigError("\n".join(faults))
        return planned

    def draw(self) -> tuple[Entry, Composed] | None:
        """Add a new job, whose number is that of its trial, to the journal and return it; None after the last trial."""
        known = self.journal.entries
        # A kill between asking and planning leaves a trial without a job: that trial comes first.
        begun = [trial for trial in self.trials() if not trial.state.is_finished() and trial.number not in known]
        number = begun[0].number if begun else len(self.trials())
        if number >= self.settings.trials:
            return None
        if number in known:
            raise ConfigError(f"{self.folder / 'study.db'}: lacks jobs of this sweep. Start a new sweep")
        self.study.sampler = self._sampler(number)
        trial = self.optuna.Trial(self.study, begun[0]._trial_id) if begun else self.study.ask()
        try:  # as `ask` does with distributions, which would not complete a trial that was begun
            params = {key: trial._suggest(key, values) for key, values in self.space.distributions.items()}
        except ValueError as error:
            raise ConfigError(f"{self.folder}: its study was made with other values: {first_line(error)}") from error
        planned = self.planned(params)
        self.journal.plan([plan.entry(number, planned, params)])
        return known[number], planned.composed

    def judge(self, number: int, epoch: float, metrics: dict[str, float]) -> str:
        """Return `pruned` if the job is not worth continuing by its metric after some epochs, else ""."""
        split, _, name = self.metric.name.partition("_")
        if self.settings.pruner is None or split != "val" or not math.isfinite(metrics.get(name, math.nan)):
            return ""
        known = self.trials()[number]
        if known.state.is_finished():  # the job failed before, and runs again for the table
            return ""
        trial = self.optuna.Trial(self.study, known._trial_id)
        if round(epoch) not in known.intermediate_values:  # a job that continues repeats some epochs
            trial.report(metrics[name], round(epoch))
        return "pruned" if trial.should_prune() else ""

    def tell(self, number: int, outcome: JobResult) -> None:
        """Tell the study how a job ended; the first result counts."""
        states = self.optuna.trial.TrialState
        if number >= len(self.trials()) or self.trials()[number].state.is_finished():
            return
        value = outcome.metrics.get(self.metric.name, math.nan)
        if outcome.failed or not math.isfinite(value):
            self.study.tell(number, state=states.FAIL)
        elif outcome.status == "pruned":
            self.study.tell(number, state=states.PRUNED)
        else:
            self.study.tell(number, value)

    def tell_all(self) -> None:
        """Tell the study all results in the journal, as a kill may have lost some."""
        for number, entry in self.journal.entries.items():
            if entry.outcome is not None and not entry.outcome.interrupted:
                self.tell(number, entry.outcome)
