"""Check a whole config against the signatures of the code that it names. Imports no torch."""

import re
from collections.abc import Iterable
from typing import Any

from dltrain.config import signatures
from dltrain.config.hints import conforms, describe, is_number, to_cli
from dltrain.config.metric_names import OF_TASKS
from dltrain.config.registry import COMMANDS, GROUPS, OPTIONAL, REQUIRED, WHOLE, Origin, builtin, names, signature
from dltrain.config.signatures import Param, Signature
from dltrain.config.suggestions import of_key, of_option, suggest
from dltrain.runtime.errors import ConfigError

TYPED = "the command line"  # the origin of a typed key


def validate(config: dict[str, Any], command: str, origin: Origin = lambda key: "") -> None:
    """Raise a ConfigError with all problems of a config, one a line."""
    if faults := find_problems(config, command, origin):
        raise ConfigError("\n".join(faults))


def find_problems(config: dict[str, Any], command: str, origin: Origin = lambda key: "") -> list[str]:
    """Return all problems of a composed and resolved config; `origin` says where a key's value comes from."""

    def where(key: str) -> str:
        return f" (from {place})" if (place := origin(key)) else ""

    source, name, nodes = COMMANDS[command]
    settings = signatures.builtin(source, name)
    faults = []
    top = {key: value for key, value in config.items() if key not in nodes}
    own = top.get("experiment")  # keys of an experiment without its first line land here
    is_lost = isinstance(own, dict | list) and not any(TYPED in where(f"experiment.{key}") for key in own)
    if command == "train" and is_lost:
        del top["experiment"]
        faults.append(f'experiment: its YAML must begin with "{WHOLE}", and hold keys and their values')
    others = [*nodes, *(f"{node}.{key}" for node in nodes for key in _known(config, node, nodes[node]))]
    faults += _check_keys("", top, settings, where, others)
    for path in () if faults else config.get("hooks", ()):
        try:
            signatures.user_object(path)
        except ConfigError as error:
            faults.append(f"hooks={error}")
    for node, place in nodes.items():
        value = config.get(node)
        if node in OPTIONAL and node not in config:
            continue
        if not isinstance(value, dict):
            faults.append(f"{node}={to_cli(value)}: must be a group of keys{where(node)}")
        elif place is not None:
            faults += _check_keys(f"{node}.", value, signatures.builtin(*place), where, settings.keys)
        elif GROUPS[node].several:
            faults += _check_several(node, value, where, settings.keys)
        else:
            faults += _check_option(node, value, where, settings.keys)
    if command == "train":
        faults += _check_metric(config.get("metric"), config.get("task"), where)
        faults += [] if faults else _check_proxy(config, where)
    folds, fold = (None if faults else config.get("data", {}).get(key) for key in ("folds", "fold"))
    if (folds, fold) != (None, None) and fold not in range(folds or 0):
        n, both = folds or 5, "set both, " * (None in (folds, fold))
        advice = f"{both}the fold from 0 to {n - 1}; all in turn: -m data.folds={n} 'data.fold=range({n})'"
        faults.append(f"data.folds={to_cli(folds)} data.fold={to_cli(fold)}: {advice}")
    return [" ".join(fault.splitlines()) for fault in faults]


def _check_metric(metric: Any, task: Any, where: Origin) -> list[str]:
    known = OF_TASKS.get(str(task.get("name"))) if isinstance(task, dict) else None
    if known is None or not isinstance(metric, str) or metric in known:  # a user's task may compute any
        return []
    return [f"metric={to_cli(metric)}: no such metric of task={task['name']}{suggest(metric, known)}{where('metric')}"]


def _check_proxy(config: dict[str, Any], where: Origin) -> list[str]:
    hardest, proxy, model = (config.get(key) for key in ("hardest", "proxy", "model"))
    if (hardest is None) != (proxy is None):
        typed = where("proxy" if hardest is None else "hardest")
        return [f"hardest={to_cli(hardest)} proxy={to_cli(proxy)}: set both, or neither{typed}"]
    if proxy is None or model is None:
        return []
    if ":" in config["task"]["name"]:
        return [f"hardest={to_cli(hardest)}: works with the built-in tasks only; set hardest=null proxy=null"]
    if "name" in proxy:  # so that no code is called that `custom_imports` has not seen
        return ["proxy.name: cannot be set; the proxy is a smaller network of the kind of the model"]
    found = signature("model", model["name"])
    same = {key: value for key, value in model.items() if key != "name"}
    return _check_keys("proxy.", same | proxy, found, where, ()) if found else []


def _check_option(group: str, node: dict[str, Any], where: Origin, others: Iterable[str]) -> list[str]:
    name, key = node.get("name"), f"{group}.name"
    if not isinstance(name, str) or name == REQUIRED:
        return [f"{key} is required: set it to module:name, your own code, or to an option's name{where(key)}"]
    try:
        found = signature(group, name)
    except ConfigError as error:
        return [f"{key}={error}"]
    if found is None:
        hint = of_option(group, name, names(group))
        own = "" if "did you mean" in hint else f"; for your own code give its module, {key}=module:{name}"
        return [f"{key}={name}: no such {group}{hint}{own}{where(key)}"]
    lost = [it for it in node if it not in ("name", *found.keys) and TYPED not in where(f"{group}.{it}")]
    if lost and not found.takes_any and TYPED in where(key):
        choice = f"{group}=custom {key}={name}" if ":" in name else f"{group}={name}"
        origins = {where(f"{group}.{it}") for it in lost}
        if len(origins) == 1 and re.search(r"/experiment/[^/]+$", origin := origins.pop()):
            removed = " ".join(f"~{group}.{it}" for it in lost)
            return [f"{choice}: does not have all keys of the experiment{origin}. Leave it out, or add {removed}"]
        return [f"{key}={name}: other keys are still those of another option; did you mean {choice}?"]
    return _check_keys(f"{group}.", {k: v for k, v in node.items() if k != "name"}, found, where, others)


def _check_several(group: str, nodes: dict[str, Any], where: Origin, others: Iterable[str]) -> list[str]:
    faults = []
    for name, node in nodes.items():
        key = f"{group}.{name}"
        found = signature(group, name) if builtin(group, name) else None
        if found is None:
            faults.append(f"{key}: no such {group}{of_option(group, name, names(group))}{where(key)}")
        elif not isinstance(node, dict):
            faults.append(f"{key}={to_cli(node)}: must be a group of keys{where(key)}")
        else:
            faults += _check_keys(f"{key}.", node, found, where, others)
    return faults


def _check_keys(prefix: str, node: dict[str, Any], found: Signature, where: Origin, others: Iterable[str]) -> list[str]:
    faults = []
    known = {prefix + key: rule for key, rule in found.keys.items()}
    for name, value in node.items():
        key = f"{prefix}{name}"
        if key in known:
            faults += _check_value(key, value, known[key], where)
        elif not found.takes_any:
            faults.append(f"{key}: no such key{of_key(key, [*known, *others])}{where(key)}")
    for key, rule in known.items():
        if rule.required and key.removeprefix(prefix) not in node:
            faults += _check_value(key, REQUIRED, rule, where)
    return faults


def _check_value(key: str, value: Any, rule: Param, where: Origin) -> list[str]:
    if value == REQUIRED:
        return [f"{key} is required: {rule.meaning or describe(rule.hint)}"]
    if conforms(value, rule.hint):
        return []
    shown, advice = to_cli(value), ""
    if isinstance(value, int | float) and conforms(shown, rule.hint):
        advice = f"; as text: '{key}=\"{shown}\"'"
    elif isinstance(value, str) and is_number(value):
        shown, advice = f'"{value}"', ", not text"
    elif meant := [each for each in _readings(value) if conforms(each, rule.hint)]:
        advice = f"; did you mean {key}={to_cli(meant[0]).replace(' ', '')}?"
    return [f"{key}={shown}: must be {describe(rule.hint)}{advice}{where(key)}"]


def _readings(value: Any) -> list[Any]:
    """Return what a value of the wrong kind may have been meant as: 1e3, ReLU, 10%, None, or one item of a list."""
    if not isinstance(value, str):
        return [int(value) if isinstance(value, float) and value.is_integer() else value, [value]]
    percent = [float(value[:-1]) / 100] if value.endswith("%") and is_number(value[:-1]) else []
    return [[value], value.lower(), *percent, *[None] * (value.lower() == "none")]


def _known(config: dict[str, Any], node: str, place: tuple[str, str] | None) -> list[str]:
    """Return the keys of a node as it is configured, for suggestions."""
    if place is not None:
        return list(signatures.builtin(*place).keys)
    own = config.get(node)
    if GROUPS[node].several and isinstance(own, dict):
        chosen = [(name, signature(node, name)) for name in own if builtin(node, name)]
        return [f"{name}.{key}" for name, found in chosen if found for key in found.keys]
    name: Any = own.get("name") if isinstance(own, dict) else None
    found = signature(node, name) if builtin(node, name) else None
    return ["name", *found.keys] if found else []
