"""Cache of the data set of a worker's last job: most jobs of a sweep use the same one."""

import functools
import json
from typing import Any

from dltrain.config import registry
from dltrain.data.augmentation import Augmentation
from dltrain.data.splits import Source, rules
from dltrain.training import build


class DataCache:
    """Loads data as `build.data` does, and keeps the splits as they were read and as they were last divided."""

    def __init__(self) -> None:
        self.read_from = self.divided_by = ""
        self.source: Source | None = None
        self.divided: build.Data | None = None
        self.known: dict[str, dict[str, Any]] = {}  # digests and counts of each way to divide it

    def __call__(self, node: dict[str, Any], seed: int) -> build.Data:
        source = registry.partial_call("data", node)
        # A user's data set may draw random numbers: another seed then gives other data.
        seeded = seed if ":" in node["name"] else None
        read_from = json.dumps([node["name"], source.keywords, seeded, rules.get()], sort_keys=True, default=str)
        if read_from != self.read_from:
            self.divided = None  # frees memory before the next data set is read
            self.source, self.read_from, self.known = functools.cache(source), read_from, {}
        is_drawn = node.get("limit") is not None or (node.get("val") and not node.get("folds"))
        kept = {key: value for key, value in node.items() if key not in Augmentation.__match_args__}
        divided_by = json.dumps([kept, seed if is_drawn else None], sort_keys=True, default=str)
        if self.divided is None or divided_by != self.divided_by:
            if self.divided is not None:
                computed = vars(self.divided).keys() - set(build.Data.__match_args__)
                self.known[self.divided_by] = {name: getattr(self.divided, name) for name in computed}
            self.divided = None
            self.divided, self.divided_by = build.data(node, seed, self.source), divided_by
            vars(self.divided).update(self.known.get(divided_by, {}))
        return self.divided
