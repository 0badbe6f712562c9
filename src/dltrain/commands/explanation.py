"""`--explain KEY`: the value of a key on a command line, its origin, its type and its meaning."""

from collections.abc import Iterator

from dltrain.config import registry
from dltrain.config.composition import Composed
from dltrain.config.dotted import at, has
from dltrain.config.hints import describe, to_cli
from dltrain.config.signatures import Param
from dltrain.config.suggestions import suggest
from dltrain.runtime.errors import ConfigError


def lines(command: str, composed: Composed, key: str) -> Iterator[str]:
    """Explain a key, or a group and all its keys. Raises ConfigError if there is no such key."""
    nodes = registry.nodes(command, composed.config)
    group = key.removesuffix(".name") if key.removesuffix(".name") in registry.GROUPS else key
    rules = registry.keys(command, composed.config)
    if group in composed.origin.chosen:
        yield from _group(group, composed)
        for member in (name for name in rules if name.startswith(f"{group}.")):
            yield ""
            yield from _key(member, composed, rules)
    elif key in rules:
        yield from _key(key, composed, rules)
    elif key in nodes and key:
        for name in nodes[key].keys:
            yield from _key(f"{key}.{name}", composed, rules)
    else:
        known = [*rules, *(node for node in nodes if node), *composed.origin.chosen]
        raise ConfigError(f"{key}: no such key{suggest(key, known)}")


def _group(group: str, composed: Composed) -> Iterator[str]:
    origin = composed.origin
    files = registry.options(group, origin.sources)
    chosen = origin.chosen[group]
    yield f"{group}={chosen}"
    if chosen in files and (summary := registry.summary(group, chosen, files[chosen])):
        yield f"  means    {summary}"
    yield f"  is       one of {', '.join(files)}"
    yield f"  from     {origin.of_option(group)}"


def _key(key: str, composed: Composed, rules: dict[str, Param]) -> Iterator[str]:
    rule, default = rules[key], composed.origin.default(key)
    given = has(composed.config, key) and at(composed.config, key) != registry.REQUIRED
    yield f"{key}={to_cli(at(composed.config, key))}" if given else f"{key} is required"
    if rule.meaning:
        yield f"  means    {rule.meaning}"
    yield f"  is       {describe(rule.hint)}"
    if given:
        yield f"  from     {composed.origin(key)}"
    if default is not None and default[0] != registry.REQUIRED:
        yield f"  default  {to_cli(default[0])} ({default[1]})"
    is_typed = f"{key}.".startswith(tuple(f"{typed}." for typed in composed.typed))
    if composed.config.get("resume") is not None and not is_typed:
        yield "  resume   keeps the value of the run, not this one"
