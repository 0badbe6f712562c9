"""`dltrain list --schema`: a JSON schema for editors, from the signatures and YAML files of checks, help, defaults."""

import types
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Interval, Len

from dltrain import __version__
from dltrain.config import registry
from dltrain.config.hints import Matches, describe
from dltrain.config.safe_yaml import read_yaml
from dltrain.config.signatures import Param, builtin

DRAFT = "https://json-schema.org/draft/2020-12/schema"
# An interpolation that Hydra resolves, such as ${oc.env:HOME} or ${epochs}, or a value that must be set.
REFERENCE = {"type": "string", "pattern": r"^(.*\$\{.*\}.*|\?\?\?)$"}
OWN_CODE = {"type": "object", "properties": {"name": {"type": "string", "pattern": ":"}}, "required": ["name"]}
TYPES: dict[Any, str] = {int: "integer", float: "number", bool: "boolean", str: "string", list: "array", dict: "object"}
TYPES |= {None: "null", type(None): "null"}
BOUNDS = {"gt": "exclusiveMinimum", "ge": "minimum", "lt": "exclusiveMaximum", "le": "maximum"}


def schema_of_configs(configs: Path) -> dict[str, Any]:
    """Return the schema of all keys of `dltrain train`."""
    source, name, nodes = registry.COMMANDS["train"]
    top_level = builtin(source, name)
    definitions: dict[str, Any] = {"reference": REFERENCE}
    properties: dict[str, Any] = {}
    conditions: list[dict[str, Any]] = []
    for group, place in nodes.items():
        defaults = {option: defaults_of(path) for option, path in registry.options(group, [configs]).items()}
        if place is not None:
            keys = builtin(*place).keys
            properties[group] = _object(keys, next(iter(defaults.values()))) | {"additionalProperties": False}
            continue
        if registry.GROUPS[group].several:
            nodes_of_options = _options(group, {option: node.get(option, {}) for option, node in defaults.items()})
            properties[group] = {"type": "object", "properties": nodes_of_options, "additionalProperties": False}
            continue
        definitions[group] = _any_option(group)
        properties[group] = {"$ref": f"#/$defs/{group}"}
        for option, schema in _options(group, defaults).items():
            schema["properties"] = {"name": {"type": "string"}} | schema["properties"]
            definitions[f"{group}.{option}"] = schema
            conditions.append(_if_chosen(group, option))
    properties |= _object(top_level.keys, defaults_of(configs / "train.yaml"))["properties"]
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
    """Return a type hint as a schema: it allows what `hints.conforms` does, and 5.0 as a whole number."""
    origin = get_origin(hint)
    if origin is Annotated:
        base, *rules = get_args(hint)
        schema = value_schema(base)
        for rule in rules:
            schema |= _rule_schema(rule, schema)
        return schema
    if origin is Literal:
        return {"enum": list(get_args(hint))}
    if origin in (Union, types.UnionType):
        return {"anyOf": [value_schema(choice) for choice in get_args(hint)]}
    if origin is list:
        return {"type": "array", "items": value_schema(get_args(hint)[0])}
    name = TYPES.get(origin or hint)
    return {"type": name} if name else {}


def _rule_schema(rule: Any, base: Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(rule, Interval):
        return {keyword: getattr(rule, sign) for sign, keyword in BOUNDS.items() if getattr(rule, sign) is not None}
    if isinstance(rule, Len):
        what = "Items" if base.get("type") == "array" else "Length"
        longest = {} if rule.max_length is None else {f"max{what}": rule.max_length}
        return {f"min{what}": rule.min_length} | longest
    return {"pattern": f"^(?:{rule.pattern})$"} if isinstance(rule, Matches) else {}


def _key_schema(rule: Param) -> dict[str, Any]:
    value = value_schema(rule.hint)
    schema = {"anyOf": [*value.get("anyOf", [value]), {"$ref": "#/$defs/reference"}]} if value else {}
    return schema | {"description": "; ".join(filter(None, [rule.meaning, describe(rule.hint)]))}


def _object(keys: Mapping[str, Param], defaults: Mapping[str, Any]) -> dict[str, Any]:
    properties = {key: _key_schema(rule) for key, rule in keys.items()}
    for key in properties:
        if key in defaults and defaults[key] != registry.REQUIRED:
            properties[key]["default"] = defaults[key]
    return {"type": "object", "properties": properties}


def _any_option(group: str) -> dict[str, Any]:
    """Return the schema of a node whose option is unknown: all keys of all options are valid, and any of user code."""
    names = registry.names(group)
    rules: dict[str, list[Any]] = {}
    for name in names:
        signature = registry.of_option(group, name)
        for key, rule in signature.keys.items() if signature else ():
            schema = _key_schema(rule)
            if schema not in rules.setdefault(key, []):
                rules[key].append(schema)
    name_schema = {"anyOf": [{"enum": names}, {"type": "string", "pattern": ":"}, {"$ref": "#/$defs/reference"}]}
    properties = {"name": name_schema | {"description": "the option, or module:name of your own code"}}
    properties |= {key: schemas[0] if len(schemas) == 1 else {"anyOf": schemas} for key, schemas in rules.items()}
    known = {"properties": properties, "additionalProperties": False}
    return {"type": "object", "properties": {"name": properties["name"]}, "if": OWN_CODE, "else": known}


def _options(group: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of each option of a group whose keys are known."""
    return {
        option: _object(signature.keys, defaults[option])
        | {"description": signature.summary, "additionalProperties": False}
        for option in defaults
        if (signature := registry.of_option(group, option)) is not None
    }


def _if_chosen(group: str, option: str) -> dict[str, Any]:
    """Return the condition that gives a node an option's keys if the defaults list or the node names that option."""
    key = f"override /{group}"
    listed = {"type": "object", "properties": {key: {"const": option}}, "required": [key]}
    named = {"type": "object", "properties": {"name": {"const": option}}, "required": ["name"]}
    places = [
        {"properties": {"defaults": {"contains": listed}}, "required": ["defaults"]},
        {"properties": {group: named}, "required": [group]},
    ]
    return {"if": {"anyOf": places}, "then": {"properties": {group: {"$ref": f"#/$defs/{group}.{option}"}}}}


def _defaults_list(configs: Path, groups: list[str]) -> dict[str, Any]:
    """Return the schema of Hydra's defaults list, in which an experiment chooses options."""
    prefix = r"^(optional )?(override )?/?"
    options: dict[str, Any] = {group: {"enum": list(registry.options(group, [configs]))} for group in groups}
    for group in groups:
        if group in registry.GROUPS and registry.GROUPS[group].several:
            options[group] = {"anyOf": [options[group], {"type": "array", "items": options[group]}]}
    choice = {
        "type": "object",
        "properties": {f"override /{group}": enum for group, enum in options.items()},
        "patternProperties": {f"{prefix}{group}$": enum for group, enum in options.items()},
        "propertyNames": {"pattern": f"{prefix}({'|'.join(groups)}|experiment|hydra/.+)$"},
    }
    meaning = "the options that are chosen, such as `- override /model: mlp`"
    return {"type": "array", "description": meaning, "items": {"anyOf": [{"type": "string"}, choice]}}


def defaults_of(path: Path, node: str = "") -> dict[str, Any]:
    """Return the values that the YAML file of an option sets, or the part of them below `node`."""
    content = read_yaml(path)
    content = content.get(node) if node and isinstance(content, dict) else content
    return content if isinstance(content, dict) else {}
