"""`dltrain list --schema`: what may stand in a config of a training run or an experiment, as a JSON schema.

Of draft 2020-12, for editors: out of the same signatures and YAML files as the checks, the help and the defaults.
"""

import types
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Interval, Len

from dltrain import __version__
from dltrain.config import registry
from dltrain.config import registry as checks
from dltrain.config.hints import Matches, describe
from dltrain.config.safe_yaml import read_yaml
from dltrain.config.signatures import Param, builtin

DRAFT = "https://json-schema.org/draft/2020-12/schema"
# What Hydra fills in: ${oc.env:HOME}, ${epochs}; or a value that must be set.
REFERENCE = {"type": "string", "pattern": r"^(.*\$\{.*\}.*|\?\?\?)$"}
OWN_CODE = {"type": "object", "properties": {"name": {"type": "string", "pattern": ":"}}, "required": ["name"]}
SIMPLE: dict[Any, dict[str, Any]] = {
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    str: {"type": "string"},
    list: {"type": "array"},
    dict: {"type": "object"},
    None: {"type": "null"},
    type(None): {"type": "null"},
}
BOUNDS = {"gt": "exclusiveMinimum", "ge": "minimum", "lt": "exclusiveMaximum", "le": "maximum"}


def schema_of_configs(configs: Path) -> dict[str, Any]:
    """The schema of everything that `dltrain train` can be configured with."""
    source, name, nodes = checks.COMMANDS["train"]
    own = builtin(source, name)
    definitions: dict[str, Any] = {"reference": REFERENCE}
    properties: dict[str, Any] = {}
    conditions: list[dict[str, Any]] = []
    for group, place in nodes.items():
        options = registry.options(group, [configs])
        defaults = [defaults_of(path) for path in options.values()]
        if place is not None:
            properties[group] = _object(builtin(*place).keys, defaults[0]) | {"additionalProperties": False}
            continue
        if checks.GROUPS[group].several:
            properties[group] = _several(group, dict(zip(options, defaults, strict=True)))
            continue
        definitions[group] = _any_option(group)
        properties[group] = {"$ref": f"#/$defs/{group}"}
        for option, path in options.items():
            if (signature := registry.of_option(group, option)) is not None:
                keys = _object(signature.keys, defaults_of(path))
                keys["properties"] = {"name": {"type": "string"}} | keys["properties"]
                definitions[f"{group}.{option}"] = keys | {
                    "description": signature.summary,
                    "additionalProperties": False,
                }
                conditions.append(_if_chosen(group, option))
    properties |= _object(own.keys, defaults_of(configs / "train.yaml"))["properties"]
    return {
        "$schema": DRAFT,
        "title": f"Configs and experiments of dltrain {__version__}",
        "type": "object",
        "properties": {"defaults": _defaults_list(configs, list(nodes)), "hydra": {"type": "object"}} | properties,
        "additionalProperties": False,
        "allOf": conditions,
        "$defs": definitions,
    }


def value_schema(hint: Any) -> dict[str, Any]:
    """A type hint as a schema: what `hints.obeys` allows, but that 5.0 is a whole number here."""
    origin = get_origin(hint)
    if origin is Annotated:
        base, *rules = get_args(hint)
        found = value_schema(base)
        for rule in rules:
            found |= _rule_schema(rule, found)
        return found
    if origin is Literal:
        return {"enum": list(get_args(hint))}
    if origin in (Union, types.UnionType):
        return {"anyOf": [value_schema(each) for each in get_args(hint)]}
    if origin is list:
        return {"type": "array", "items": value_schema(get_args(hint)[0])}
    return dict(SIMPLE.get(origin or hint, {}))


def _rule_schema(rule: Any, base: Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(rule, Interval):
        return {word: getattr(rule, sign) for sign, word in BOUNDS.items() if getattr(rule, sign) is not None}
    if isinstance(rule, Len):
        what = "Items" if base.get("type") == "array" else "Length"
        longest = {} if rule.max_length is None else {f"max{what}": rule.max_length}
        return {f"min{what}": rule.min_length} | longest
    return {"pattern": f"^(?:{rule.pattern})$"} if isinstance(rule, Matches) else {}


def _key_schema(rule: Param) -> dict[str, Any]:
    own = value_schema(rule.hint)
    found = {"anyOf": [*own.get("anyOf", [own]), {"$ref": "#/$defs/reference"}]} if own else {}
    return found | {"description": "; ".join(filter(None, [rule.meaning, describe(rule.hint)]))}


def _object(keys: Mapping[str, Param], defaults: Mapping[str, Any]) -> dict[str, Any]:
    properties = {key: _key_schema(rule) for key, rule in keys.items()}
    for key in properties:
        if key in defaults and defaults[key] != checks.REQUIRED:
            properties[key]["default"] = defaults[key]
    return {"type": "object", "properties": properties}


def _any_option(group: str) -> dict[str, Any]:
    """A node whose option is not known here: the keys of all of them, and of a user's own code any."""
    names = checks.names(group)
    rules: dict[str, list[Any]] = {}
    for name in names:
        signature = registry.of_option(group, name)
        for key, rule in signature.keys.items() if signature else ():
            found = _key_schema(rule)
            if found not in rules.setdefault(key, []):
                rules[key].append(found)
    own = {"anyOf": [{"enum": names}, {"type": "string", "pattern": ":"}, {"$ref": "#/$defs/reference"}]}
    properties = {"name": own | {"description": "the option, or module:name of your own code"}}
    properties |= {key: found[0] if len(found) == 1 else {"anyOf": found} for key, found in rules.items()}
    return {
        "type": "object",
        "properties": {"name": properties["name"]},
        "if": OWN_CODE,
        "else": {"properties": properties, "additionalProperties": False},
    }


def _several(group: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """A node that holds a node for each of several options."""
    signatures = {option: registry.of_option(group, option) for option in defaults}
    nodes = {
        option: _object(signature.keys, defaults[option].get(option, {}))
        | {"description": signature.summary, "additionalProperties": False}
        for option, signature in signatures.items()
        if signature is not None
    }
    return {"type": "object", "properties": nodes, "additionalProperties": False}


def _if_chosen(group: str, option: str) -> dict[str, Any]:
    """The keys of an option, where it is named in the defaults list or in the node itself."""
    word = f"override /{group}"
    listed = {"type": "object", "properties": {word: {"const": option}}, "required": [word]}
    named = {"type": "object", "properties": {"name": {"const": option}}, "required": ["name"]}
    return {
        "if": {
            "anyOf": [
                {"properties": {"defaults": {"contains": listed}}, "required": ["defaults"]},
                {"properties": {group: named}, "required": [group]},
            ]
        },
        "then": {"properties": {group: {"$ref": f"#/$defs/{group}.{option}"}}},
    }


def _defaults_list(configs: Path, groups: list[str]) -> dict[str, Any]:
    """Hydra's defaults list: the options an experiment chooses."""
    word = r"^(optional )?(override )?/?"
    options: dict[str, Any] = {group: {"enum": list(registry.options(group, [configs]))} for group in groups}
    for group in groups:
        if group in checks.GROUPS and checks.GROUPS[group].several:
            options[group] = {"anyOf": [options[group], {"type": "array", "items": options[group]}]}
    return {
        "type": "array",
        "description": "the options that are chosen, such as `- override /model: mlp`",
        "items": {
            "anyOf": [
                {"type": "string"},
                {
                    "type": "object",
                    "properties": {f"override /{group}": enum for group, enum in options.items()},
                    "patternProperties": {f"{word}{group}$": enum for group, enum in options.items()},
                    "propertyNames": {"pattern": f"{word}({'|'.join(groups)}|experiment|hydra/.+)$"},
                },
            ]
        },
    }


def defaults_of(path: Path, node: str = "") -> dict[str, Any]:
    """What the YAML file of an option sets, or the part of it under `node`."""
    found = read_yaml(path)
    found = found.get(node) if node and isinstance(found, dict) else found
    return found if isinstance(found, dict) else {}
