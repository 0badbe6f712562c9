"""Signatures are the schema: every built-in key is typed and explained, and a person's own code is read as well."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Interval, Len

from dltrain.config import registry, settings, signatures
from dltrain.config.hints import Matches
from dltrain.runtime.errors import ConfigError

OPTIONS = [(group, name) for group in registry.GROUPS for name in registry.names(group)]
FIXED = [
    ("runtime/devices.py", "device"),
    *(("config/settings.py", name) for name in ("Train", "Eval", "EvalData", "Predict")),
]

SOURCE = '''
"""A source file as the package has them."""

from typing import Annotated, Literal

from annotated_types import Interval, Len
from dltrain.config.hints import Matches

Rate = Annotated[float, Interval(gt=0)]
Duration = Annotated[str, Matches(r"\\d+s", "a time")]


def option(data, /, *rest, rate: Rate, kind: Literal["a", "b"] = "a", mystery: Unknown, bare=1) -> None:
    """The summary.

    It goes on: here.

    Args:
        rate: how fast
        kind: which one

    Raises ValueError: never.
    """


def takes_any(first: int, last: int = 3, **others: int) -> None:
    """Takes whatever comes."""


class Thing:
    """A class with a constructor."""

    ignored: int

    def __init__(self, *, width: Annotated[list[Annotated[int, Interval(ge=1)]], Len(1)], wait: int | Duration):
        pass


class Plain:
    """A dataclass.

    Args:
        size: how large
    """

    size: float | None
    steps: list[int] = 5


def _hidden() -> None:
    pass


constant = 3
'''


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A source tree of its own in place of the package, with `SOURCE` as source.py."""
    (tmp_path / "source.py").write_text(SOURCE)
    monkeypatch.setattr(signatures, "PACKAGE", tmp_path)
    signatures.builtin.cache_clear()  # it is cached by the name of the file, not by the tree
    yield tmp_path
    signatures.builtin.cache_clear()


Write = Callable[[str, str], None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Write a module of a person's own into the current folder; forget it afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    written = []

    def write(name: str, text: str) -> None:
        (tmp_path / f"{name}.py").write_text(text)
        written.append(name)

    yield write
    for name in written:
        sys.modules.pop(name, None)


@pytest.mark.parametrize(("group", "name"), OPTIONS)
def test_every_built_in_option_has_a_summary_of_one_line(group: str, name: str) -> None:
    option = registry.signature(group, name)
    assert option is not None
    assert option.summary.strip()
    assert option.summary.endswith((".", ")"))


@pytest.mark.parametrize(("group", "name"), OPTIONS)
def test_every_key_of_a_built_in_option_has_a_meaning_and_a_known_hint(group: str, name: str) -> None:
    option = registry.signature(group, name)
    assert option is not None
    assert [key for key, rule in option.keys.items() if not rule.meaning or rule.hint is Any] == []


@pytest.mark.parametrize(("source", "name"), FIXED)
def test_every_key_outside_the_groups_has_a_meaning_and_a_known_hint(source: str, name: str) -> None:
    found = signatures.builtin(source, name)
    assert found is not None
    assert [key for key, rule in found.keys.items() if not rule.meaning or rule.hint is Any] == []


@pytest.mark.parametrize("name", ["Train", "Eval", "EvalData", "Predict"])
def test_a_signature_read_from_source_equals_the_one_python_sees(name: str) -> None:
    found = signatures.builtin("config/settings.py", name)
    assert found is not None
    real = signatures.user_signature(getattr(settings, name))
    assert {key: rule.hint for key, rule in found.keys.items()} == {key: rule.hint for key, rule in real.keys.items()}
    assert found.summary == real.summary


def test_reading_every_built_in_imports_no_torch() -> None:
    code = (
        "import sys\n"
        "from dltrain.config import registry\n"
        "assert all(registry.signature(group, name) for group in registry.GROUPS for name in registry.names(group))\n"
        "assert not {'torch', 'torchvision', 'sklearn', 'numpy', 'hydra'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_function_is_read_from_its_source(package: Path) -> None:
    found = signatures.builtin("source.py", "option")
    assert found is not None
    assert found.summary == "The summary."
    assert found.keys == {
        "data": signatures.Param(Any, True, ""),
        "rate": signatures.Param(Annotated[float, Interval(gt=0)], True, "how fast"),
        "kind": signatures.Param(Literal["a", "b"], False, "which one"),
        "mystery": signatures.Param(Any, True, ""),
        "bare": signatures.Param(Any, False, ""),
    }
    assert not found.takes_any


def test_a_function_with_kwargs_says_so_and_knows_its_defaults(package: Path) -> None:
    found = signatures.builtin("source.py", "takes_any")
    assert found is not None
    assert found.takes_any
    assert {key: rule.required for key, rule in found.keys.items()} == {"first": True, "last": False}


def test_a_class_is_read_from_its_constructor_in_any_case(package: Path) -> None:
    found = signatures.builtin("source.py", "thing")
    assert found is not None
    assert {key: rule.hint for key, rule in found.keys.items()} == {
        "width": Annotated[list[Annotated[int, Interval(ge=1)]], Len(1)],
        "wait": int | Annotated[str, Matches(r"\d+s", "a time")],
    }


def test_a_class_without_a_constructor_is_read_from_its_fields(package: Path) -> None:
    found = signatures.builtin("source.py", "Plain")
    assert found is not None
    assert found.keys == {
        "size": signatures.Param(float | None, True, "how large"),
        "steps": signatures.Param(list[int], False, ""),
    }


@pytest.mark.parametrize(("source", "name"), [("source.py", "nothing"), ("nowhere.py", "option")])
def test_a_missing_object_has_no_signature(package: Path, source: str, name: str) -> None:
    with pytest.raises(signatures.SignatureNotFound):
        signatures.builtin(source, name)


def test_a_class_of_several_words_matches_both_spellings(tmp_path: Path, package: Path) -> None:
    (package / "my_net.py").write_text('class MyNet:\n    """A net."""\n')
    assert signatures.builtin("my_net.py", "my_net") == signatures.builtin("my_net.py", "mynet")


def test_an_entry_that_stands_a_little_to_the_right_is_an_entry(write: Write) -> None:
    entries = "Args:\n        width: units\n         depth: layers\n"
    write("mine", f'def net(width, depth):\n    """A net.\n\n    {entries}    """\n')
    keys = signatures.user_signature(signatures.user_object("mine:net")).keys
    assert {name: key.meaning for name, key in keys.items()} == {"width": "units", "depth": "layers"}


def test_public_names_are_functions_and_classes_without_an_underscore(package: Path) -> None:
    assert signatures.public_names("source.py") == ["option", "takes_any", "thing", "plain"]


def test_meanings_come_only_from_the_args_section() -> None:
    document = "Summary: not a key.\n\nArgs:\n    lr: rate: of learning\n    two words: no key\n\nRaises: nothing\n"
    assert signatures.argument_meanings(document) == {"lr": "rate: of learning"}


def test_a_meaning_of_several_lines_is_whole() -> None:
    document = "Summary.\n\nArgs:\n    lr: rate\n        of learning,\n        above 0\n    decay: of weights\n"
    assert signatures.argument_meanings(document) == {"lr": "rate of learning, above 0", "decay": "of weights"}


OWN = '''
from typing import Annotated

from annotated_types import Interval


class Net:
    """My net.

    Args:
        width: how wide
    """

    def __init__(self, *, input_shape: tuple, width: Annotated[int, Interval(ge=1)], depth: int = 2, free=None):
        self.width = width


def make(named_parameters, **settings):
    """My function."""


def forward_reference(x: "Missing"):
    """Its hint names what is not imported."""


NUMBER = 3
'''


def test_a_user_class_is_read_by_import_path(write: Write) -> None:
    write("own_nets", OWN)
    found = signatures.user_signature(signatures.user_object("own_nets:Net"))
    assert found.summary == "My net."
    assert found.keys == {
        "input_shape": signatures.Param(tuple, True, ""),
        "width": signatures.Param(Annotated[int, Interval(ge=1)], True, "how wide"),
        "depth": signatures.Param(int, False, ""),
        "free": signatures.Param(Any, False, ""),
    }
    assert not found.takes_any


def test_a_user_function_with_kwargs_says_so(write: Write) -> None:
    write("own_nets", OWN)
    found = signatures.user_signature(signatures.user_object("own_nets:make"))
    assert (list(found.keys), found.takes_any) == (["named_parameters"], True)


def test_hints_that_cannot_be_resolved_allow_any_value_but_no_other_key(write: Write) -> None:
    write("own_nets", OWN)
    found = signatures.user_signature(signatures.user_object("own_nets:forward_reference"))
    key = signatures.Param(Any, True, "")
    assert found == signatures.Signature("Its hint names what is not imported.", {"x": key}, takes_any=False)


def test_the_current_folder_is_searched_for_user_code(write: Write, tmp_path: Path) -> None:
    write("own_nets", OWN)
    assert str(tmp_path) not in sys.path
    assert signatures.user_object("own_nets:Net").__module__ == "own_nets"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("not_there:Net", "not_there:Net: cannot import not_there (ModuleNotFoundError: No module named 'not_there')"),
        ("not.there:Net", "not.there:Net: cannot import not.there (ModuleNotFoundError: No module named 'not')"),
        (":Net", ":Net: cannot import  (ValueError: Empty module name)"),
        ("own_nets:Missing", "own_nets:Missing: own_nets has no function or class Missing"),
        ("own_nets:NUMBER", "own_nets:NUMBER: own_nets has no function or class NUMBER"),
        ("own_nets:", "own_nets:: own_nets has no function or class (name it after a colon)"),
        ("own_nets", "own_nets: own_nets has no function or class (name it after a colon)"),
        ("raises:Net", "raises:Net: cannot import raises (ZeroDivisionError: division by zero)"),
        ("broken:Net", "broken:Net: cannot import broken (SyntaxError: "),
    ],
)
def test_a_missing_import_path_is_a_config_error(write: Write, path: str, message: str) -> None:
    write("own_nets", OWN)
    write("raises", "1 / 0\n")
    write("broken", "def (:\n")
    with pytest.raises(ConfigError) as caught:
        signatures.user_object(path)
    assert str(caught.value).startswith(message)
    assert len(str(caught.value).splitlines()) == (2 if path in ("raises:Net", "broken:Net") else 1)  # with its line
