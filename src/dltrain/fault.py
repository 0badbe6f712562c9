"""What is wrong with a config or a command line, and the nearest right names. Imports no torch."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from dltrain.errors import ConfigError

TYPED = "the command line"  # an origin of keys


@dataclass(frozen=True)
class Fault:
    """One thing wrong with a config: the key, what is wrong and what to do."""

    key: str
    text: str

    def __str__(self) -> str:
        return " ".join(f"{self.key}{self.text}".splitlines())


def refuse(faults: list[Fault]) -> None:
    """Raise a ConfigError that tells all faults at once, one a line; none is fine."""
    if faults:
        raise ConfigError("\n".join(str(fault) for fault in faults))


def suggest(word: str, known: Iterable[str]) -> str:
    """`; did you mean X?` with the nearest known name, compared whole or by its last part; else all of a few."""
    known = list(dict.fromkeys(known))
    # Of three names all can be told: only a near miss is worth a guess (gpu is not meant as cpu).
    cutoff = 0.8 if len(known) <= 3 else 0.6
    parent, _, last = word.rpartition(".")
    beside = {key.rpartition(".")[2]: key for key in known if parent and key.rpartition(".")[0] == parent}
    # What names share with their neighbours makes none of them nearer; of the group itself they are not meant.
    others = [key for key in known if key not in beside.values() and not word.startswith(f"{key}.")]
    nearest = [beside[key] for key in difflib.get_close_matches(last, beside, 1, max(cutoff, 0.65))]
    nearest = nearest or difflib.get_close_matches(word, others, 1, cutoff)
    if not nearest:
        lasts = {key.rpartition(".")[2]: key for key in reversed(others)}
        nearest = [lasts[key] for key in difflib.get_close_matches(last, lasts, 1, 0.8 if parent else cutoff)]
    if nearest:
        return f"; did you mean {nearest[0]}?"
    return f"; there are {', '.join(known)}" if len(known) <= 12 else ""
