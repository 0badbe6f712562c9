"""Say what a wrong name was probably meant to be. Imports no torch."""

import difflib
import re
from collections.abc import Collection, Iterable

from dltrain.config import registry, signatures, synonyms
from dltrain.config.synonyms import fold, meaning

# Names of torchvision's networks; listing them takes seconds, as torchvision must be imported.
TORCHVISION = r"(wide_)?res(net|next)\d\w+|(vgg|densenet|mobilenet|efficientnet|convnext|regnet|vit_|swin|alexnet)\w*"


def suggest(typed: str, known: Iterable[str]) -> str:
    """Return `; did you mean X?` with the nearest name, compared whole or by its last part; else all names if few."""
    known = list(dict.fromkeys(known))
    # Up to three names can all be listed: only a near miss is worth a guess (gpu is not meant as cpu).
    cutoff = 0.8 if len(known) <= 3 else 0.6
    parent, _, last = typed.rpartition(".")
    beside = {key.rpartition(".")[2]: key for key in known if parent and key.rpartition(".")[0] == parent}
    # A prefix that names share makes none of them nearer; the group itself is not meant.
    others = [key for key in known if key not in beside.values() and not typed.startswith(f"{key}.")]
    nearest = [key for key in known if fold(key) == fold(typed)]
    nearest = nearest or [beside[key] for key in difflib.get_close_matches(last, beside, 1, max(cutoff, 0.65))]
    lasts = {key.rpartition(".")[2]: key for key in reversed(others)}
    names = ({} if parent else lasts) | {key: key for key in others}
    nearest = nearest or [names[key] for key in difflib.get_close_matches(typed, names, 1, cutoff)]
    nearest = nearest or [lasts[key] for key in difflib.get_close_matches(last, lasts, 1, 0.8)]
    return _meant(*nearest) or (f"; there are {', '.join(known)}" if 0 < len(known) <= 12 else "")


def of_key(typed: str, known: Collection[str], command: str = "train") -> str:
    """Say which key was meant by one that does not exist; `known` are those that do, with the options chosen."""
    parent, _, last = typed.rpartition(".")
    if same := [key for key in known if fold(key) == fold(typed)]:
        return _meant(*same)
    if advice := meaning(synonyms.ADVICE, last):
        return f"; {advice}"
    if parent == "proxy" and known:
        own = [key for key in known if key.startswith("proxy.")]
        return suggest(typed, own) if own else f"; write 'proxy={{{last}: …}}'"
    synonymous = meaning(synonyms.KEYS, last).split()
    if meant := [key for key in synonymous if key in known]:
        return _meant(*meant)
    if command != "train" and any(map(_is_of_train, (typed, *synonymous))):
        return "; only train has it, here the checkpoint fixes it"
    if hint := _in_options(last, [parent]):
        return hint
    if same := [key for key in known if fold(key.rpartition(".")[2]) == fold(last)]:
        return _meant(*same)
    elsewhere = (_in_options(key.rpartition(".")[2], registry.GROUPS) for key in (last, *synonymous))
    return next(filter(None, elsewhere), "") or suggest(typed, known)


def of_option(group: str, typed: str, names: Collection[str]) -> str:
    """Say which option of a group was meant by a name that it does not have; `names` are those that it has."""
    if advice := meaning(synonyms.OPTIONS, f"{group}={typed}"):
        return f"; {advice}"
    if typed == "custom":
        return f"; for your own code set {group}.name=module:function"
    found = [name for name in names if name.endswith(f"/{typed}")]
    if group == "model" and not found and re.fullmatch(TORCHVISION, typed):
        found = [f"model=torchvision model.arch={typed}"]
    found = found or [it for it, name in _options().items() if name == fold(typed) and name not in names]
    return _meant(*found) or suggest(typed, names) or "; dltrain list shows all"


def of_bare(typed: str, command: str, known: Collection[str]) -> str:
    """Say what was meant by an argument without an equals sign."""
    key, _, value = typed.partition(":")
    if typed in known:
        return f"; give it a value, {typed}=VALUE. dltrain {command} --explain {typed} describes it"
    if key in known:
        return _meant(f"{key}={value}")
    if typed.endswith((".yaml", ".yml")):
        return f"; {meaning(synonyms.ADVICE, 'config')}"
    options = {name: option for option, name in reversed(_options().items())} if command == "train" else {}
    nearest = [name for name in options if fold(name) == fold(typed)]
    return _meant(*(options[name] for name in nearest or difflib.get_close_matches(typed, options, 1, 0.75)))


def of_command(argv: list[str], commands: Collection[str]) -> str:
    """Say which command was meant by the first argument, which is none."""
    if not (argv[0].startswith("-") or "=" in argv[0]):
        return suggest(argv[0], commands)
    command = next((it for it in argv if it in commands), "train")
    others = " ".join(it.lstrip("-") for it in argv if it != command)
    return f"; the command comes first: dltrain {command} {others}"


def _meant(*names: str) -> str:
    return f"; did you mean {names[0]}?" if names else ""


def _options() -> dict[str, str]:
    """Return the name of every option by GROUP=NAME."""
    folders = [registry.config_folder()]
    return {f"{group}={name}": name for group in registry.LISTED_GROUPS for name in registry.options(group, folders)}


def _in_options(name: str, groups: Iterable[str]) -> str:
    """Say which options have a key that the chosen one lacks, in the first of the groups in which there are any."""
    for group in (each for each in groups if each in registry.GROUPS and not registry.GROUPS[each].several):
        options = {option: registry.signature(group, option) for option in registry.names(group)}
        found = {option: key for option, own in options.items() if own for key in own.keys if fold(key) == fold(name)}
        for key in found.values():
            return f"; there is {group}.{key} with {group}={', '.join(found)}"
    return ""


def _is_of_train(key: str) -> bool:
    group, _, last = key.partition(".")
    own = signatures.builtin(*registry.COMMANDS["train"][:2]).keys
    return key in own or bool(_in_options(last, [group])) or (group in registry.GROUPS and last in ("", "name"))
