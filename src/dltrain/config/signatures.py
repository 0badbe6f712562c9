"""Signatures of functions and classes: the schema of the config.

Built-ins are read with `ast`, so that help, checks and completion import no torch; a user's own code is imported.
"""

import ast
import contextlib
import functools
import importlib
import inspect
import os
import sys
import traceback
import typing
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Interval, Len

from dltrain.config.hints import Matches
from dltrain.runtime.errors import TRACEBACK, ConfigError, located, typed_line

PACKAGE = Path(__file__).parents[1]
KNOWN: dict[str, Any] = {"Annotated": Annotated, "Literal": Literal}
KNOWN |= {known.__name__: known for known in (Interval, Len, Matches, bool, dict, float, int, list, str)}


@dataclass(frozen=True)
class Param:
    """A keyword argument: its type hint (Any if unknown), whether it is required, and its meaning."""

    hint: Any
    required: bool
    meaning: str


@dataclass(frozen=True)
class Signature:
    """The keyword arguments of a function or class; `takes_any` is True if it has **kwargs."""

    summary: str
    keys: dict[str, Param]
    takes_any: bool = False


class SignatureNotFound(LookupError):
    """Raised if a file has no function or class of that name."""


@functools.cache
def _parsed(source: str) -> ast.Module:
    return ast.parse((PACKAGE / source).read_text(encoding="utf-8"))


@functools.cache
def builtin(source: str, name: str) -> Signature:
    """Return the signature of what `matches_name` in a source file of this package. Raises SignatureNotFound."""
    if not (PACKAGE / source).is_file():
        raise SignatureNotFound(source)
    tree = _parsed(source)
    assignments = [node for node in tree.body if isinstance(node, ast.Assign)]
    aliases = {target.id: node.value for node in assignments for target in node.targets if isinstance(target, ast.Name)}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and matches_name(node.name, name):
            return _read(node, aliases)
    raise SignatureNotFound(f"{source} has no {name}")


def matches_name(definition: str, name: str) -> bool:
    """True if an option's name means this function or class: my_net and mynet mean MyNet."""
    return definition.lower() in (name.lower(), name.lower().replace("_", ""))


def public_names(source: str) -> list[str]:
    """Return the public functions and classes of a source file, in lower case."""
    definitions = (node for node in _parsed(source).body if isinstance(node, ast.FunctionDef | ast.ClassDef))
    return [node.name.lower() for node in definitions if not node.name.startswith("_")]


def _read(node: ast.FunctionDef | ast.ClassDef, aliases: dict[str, ast.expr]) -> Signature:
    document = ast.get_docstring(node) or ""
    found: dict[str, tuple[ast.expr | None, bool]] = {}
    takes_any = False
    functions = [item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"]
    if isinstance(node, ast.FunctionDef):
        functions = [node]
    for function in functions:
        arguments = function.args
        positional = arguments.posonlyargs + arguments.args
        without_default = [None] * (len(positional) - len(arguments.defaults))
        defaults = [*without_default, *arguments.defaults, *arguments.kw_defaults]
        for argument, default in zip(positional + arguments.kwonlyargs, defaults, strict=True):
            if argument.arg != "self":
                found[argument.arg] = argument.annotation, default is None
        takes_any = arguments.kwarg is not None
    if not functions:  # a dataclass: its fields are its arguments
        for field in node.body:
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                found[field.target.id] = field.annotation, field.value is None
    meanings = argument_meanings(document, found)
    hints = {name: (_hint(hint, aliases), is_required) for name, (hint, is_required) in found.items()}
    keys = {name: Param(*hint, meanings.get(name, "")) for name, hint in hints.items()}
    return Signature(document.partition("\n")[0], keys, takes_any)


def _hint(node: ast.expr | None, aliases: dict[str, ast.expr]) -> Any:
    """Return the object of a type hint, for the few forms that config keys need; Any for other forms, and for none."""
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id=name) if name in KNOWN:
            return KNOWN[name]
        case ast.Name(id=name) if name in aliases:
            return _hint(aliases[name], aliases)
        case ast.Tuple(elts=elements):
            return tuple(_hint(element, aliases) for element in elements)
        case ast.Subscript(value=base, slice=inner):
            generic = _hint(base, aliases)
            return generic if generic is Any else generic[_hint(inner, aliases)]
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return typing.Union[_hint(left, aliases), _hint(right, aliases)]  # noqa: UP007  (the operands are values)
        case ast.Call(func=function, args=arguments, keywords=keywords):
            called = _hint(function, aliases)
            if called is Any:
                return Any
            positional = [_hint(argument, aliases) for argument in arguments]
            return called(*positional, **{str(it.arg): _hint(it.value, aliases) for it in keywords})
    return Any


def argument_meanings(document: str, names: Collection[str] = ()) -> dict[str, str]:
    """Return the entries `name: meaning` of Args; lines indented further continue one, unless they begin `names`."""
    meanings: dict[str, str] = {}
    name, depth = "", 0
    for line in document.partition("Args:")[2].splitlines():
        if line and not line.startswith(" "):
            break
        indent = len(line) - len(line.lstrip())
        found, colon, meaning = line.strip().partition(": ")
        if name and indent > depth and not (colon and found in names):
            meanings[name] += f" {line.strip()}"
            continue
        name, depth = (found, indent) if colon and found.isidentifier() else ("", 0)
        if name:
            meanings[name] = meaning
    return meanings


def user_object(path: str) -> Any:
    """Import the object of a path such as `my_package.nets:MyNet`; the current folder is first. Raises ConfigError."""
    module_name, _, name = path.partition(":")
    folder = str(Path.cwd())
    if folder not in sys.path:  # the console script does not have it, `python -m` does
        sys.path.insert(0, folder)
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a user's module may do anything while it is imported
        if os.environ.get(TRACEBACK):  # printed here, because the check collects messages only
            traceback.print_exception(error)
        raise ConfigError(located(f"{path}: cannot import {module_name} ({typed_line(error)})", error)) from error
    if not callable(found := getattr(module, name, None)):
        raise ConfigError(f"{path}: {module_name} has no function or class {name or '(name it after a colon)'}")
    return found


def user_signature(found: Any) -> Signature:
    """Return the signature of a user's function or class."""
    document = inspect.getdoc(found) or ""
    try:
        parameters = dict(inspect.signature(found).parameters)
    except (TypeError, ValueError):  # built in C
        return Signature(document, {}, takes_any=True)
    hints: dict[str, Any] = {}
    with contextlib.suppress(Exception):  # hints with names that are not imported: then every value is allowed
        hints = typing.get_type_hints(found.__init__ if inspect.isclass(found) else found, include_extras=True)
    meanings: dict[str, str] = {}
    for described in reversed(getattr(found, "__mro__", (found,))):  # a base explains its own arguments
        meanings |= argument_meanings(inspect.getdoc(described) or "", parameters)
    keys = {
        name: Param(hints.get(name, Any), parameter.default is parameter.empty, meanings.get(name, ""))
        for name, parameter in parameters.items()
        if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    }
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return Signature(document.partition("\n")[0], keys, takes_any)
