"""Jobs of a search: from what Optuna asks for to a job in the journal, and back to Optuna how it ended."""

from dataclasses import dataclass
from typing import Any

from dltrain.composition import Composed
from dltrain.errors import ConfigError
from dltrain.jobs import Outcome
from dltrain.sweeps import plan
from dltrain.sweeps.journal import Entry, Journal
from dltrain.sweeps.plan import Composer, Planned
from dltrain.sweeps.search import Search


@dataclass
class Drawn:
    """Further jobs of a sweep, each planned when there is room for it; the study is told how they end."""

    command: str
    search: Search
    composer: Composer
    journal: Journal
    typed: plan.Typed | None

    def planned(self, params: dict[str, Any]) -> Planned:
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

    def tell(self, number: int, outcome: Outcome) -> None:
        self.search.tell(number, outcome.figures, outcome.status, failed=outcome.failed)

    def tell_all(self) -> None:
        """Tell the study what the journal knows: a kill may have come in between."""
        for number, entry in self.journal.entries.items():
            if entry.outcome is not None and not entry.outcome.interrupted:
                self.tell(number, entry.outcome)
