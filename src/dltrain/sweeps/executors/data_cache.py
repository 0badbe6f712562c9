"""Cache of the data set of a worker's last job: most jobs of a sweep use the same one."""

import functools
import json
from typing import Any

from dltrain.config import registry
from dltrain.data.splits import Source, rules
from dltrain.training import build


class DataCache:
    """Loads data as `build.data` does, and keeps the splits as they were read and as they were last divided."""

    def __init__(self) -> None:
        self.read_from, self.divided_by = "", (0, 0)
        self.source: Source | None = None
        self.divided: build.Data | None = None

    def __call__(self, node: dict[str, Any], seed: int) -> build.Data:
        # A user's data set may draw random numbers: another seed then gives other data.
        seeded = {"seed": seed} if ":" in node["name"] else {}
        divided_by = seed, node.get("fold", 0)
        read_from = json.dumps([node | {"fold": None}, seeded, rules.get()], sort_keys=True, default=str)
        if read_from != self.read_from:
            self.divided = None  # frees memory before the next data set is read
            self.source = functools.cache(registry.partial_call("data", node))
            self.read_from = read_from
        if self.divided is None or divided_by != self.divided_by:
            self.divided = None
            self.divided = build.data(node, seed, self.source)
            self.divided_by = divided_by
        return self.divided
