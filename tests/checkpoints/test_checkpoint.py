"""Checkpoints are written whole or not at all, and whatever lies in their place is refused in one line, code unrun."""

import errno
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dltrain.checkpoints import archive, checkpoint
from dltrain.runtime.errors import InputError, OutputError
from dltrain.training import weights
from support.contents import content, equal, files


def test_a_checkpoint_is_loaded_with_the_same_bits(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "last.pt", content())
    assert equal(checkpoint.load(tmp_path / "last.pt"), {"format": checkpoint.FORMAT} | content())


def test_saving_leaves_one_file_and_replaces_the_one_before(tmp_path: Path) -> None:
    for seed in (0, 1):
        checkpoint.save(tmp_path / "last.pt", content(seed))
    assert files(tmp_path) == ["last.pt"]
    assert equal(checkpoint.load(tmp_path / "last.pt")["model"], content(1)["model"])


@pytest.mark.parametrize("keep", [1, 2, 3, 5])
def test_the_newest_replaced_checkpoints_are_kept_in_order(tmp_path: Path, keep: int) -> None:
    for step in range(9):
        checkpoint.save(tmp_path / "last.pt", content(step), keep=keep)
    names = ["last.pt", *(f"last-{number}.pt" for number in range(1, keep))]
    assert files(tmp_path) == sorted(names)
    assert [checkpoint.load(tmp_path / name)["step"] for name in names] == list(range(8, 8 - keep, -1))


def test_a_missing_folder_is_an_output_error_with_the_path(tmp_path: Path) -> None:
    path = tmp_path / "gone" / "last.pt"
    with pytest.raises(OutputError) as caught:
        checkpoint.save(path, content())
    assert caught.value.exit_code == 74
    assert str(path) in str(caught.value)


def test_a_folder_in_place_of_the_file_is_an_output_error_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "last.pt" / "inner").mkdir(parents=True)
    with pytest.raises(OutputError):
        checkpoint.save(tmp_path / "last.pt", content())
    assert files(tmp_path) == ["last.pt"]


class Hostile:
    """Pickled, it makes a folder where it is loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (self.folder,)


def damaged(path: Path, kind: str) -> Path:
    """A file that is no checkpoint, in one of many ways."""
    if kind == "missing":
        return path
    if kind == "a folder":
        path.mkdir()
        return path
    checkpoint.save(path, content())
    data = path.read_bytes()
    match kind:
        case "empty":
            path.write_bytes(b"")
        case "a few bytes":
            path.write_bytes(data[:10])
        case "cut in the middle":
            path.write_bytes(data[: len(data) // 2])
        case "cut by a byte":
            path.write_bytes(data[:-1])
        case "zeros in the middle":
            path.write_bytes(data[:200] + bytes(400) + data[600:])
        case "text":
            path.write_text("not a checkpoint\n" * 5)
        case "a pickle":
            path.write_bytes(pickle.dumps({"model": {}, "config": {}}))
        case "a pickled class":
            torch.save({"model": {}, "config": {}, "format": 1, "extra": Hostile(path.parent / "ran")}, path)
        case "a pickled class of old":
            path.write_bytes(pickle.dumps(Hostile(path.parent / "ran"), protocol=2))
        case "a whole model":
            torch.save(nn.Linear(1, 1), path)
        case "a list":
            torch.save([1, 2], path)
        case "bare weights":
            torch.save(nn.Linear(1, 1).state_dict(), path)
    return path


KINDS = [
    "missing",
    "a folder",
    "empty",
    "a few bytes",
    "cut in the middle",
    "cut by a byte",
    "zeros in the middle",
    "text",
    "a pickle",
    "a pickled class",
    "a pickled class of old",
    "a whole model",
    "a list",
    "bare weights",
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_not_a_checkpoint_is_an_input_error_in_one_line(tmp_path: Path, kind: str) -> None:
    path = damaged(tmp_path / "last.pt", kind)
    with pytest.raises(InputError) as caught:
        checkpoint.load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert (caught.value.exit_code, len(message.splitlines())) == (66, 1)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("a pickle", "bare weights")])
def test_a_file_without_weights_is_an_input_error_in_one_line(tmp_path: Path, kind: str) -> None:
    path = damaged(tmp_path / "last.pt", kind)
    with pytest.raises(InputError) as caught:
        checkpoint.load_weights(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert (caught.value.exit_code, len(str(caught.value).splitlines())) == (66, 1)
    assert not (tmp_path / "ran").exists()


def test_the_hostile_file_of_these_tests_is_hostile(tmp_path: Path) -> None:
    path = damaged(tmp_path / "last.pt", "a pickled class")
    torch.load(path, weights_only=False)
    assert (tmp_path / "ran").is_dir()


def test_bare_weights_as_a_checkpoint_are_refused_with_a_hint_to_init(tmp_path: Path) -> None:
    path = damaged(tmp_path / "last.pt", "bare weights")
    with pytest.raises(InputError, match=f"init={path}"):
        checkpoint.load(path)


OLDER = "Its weights can be used in a new run: init="


@pytest.mark.parametrize(
    ("version", "advice"),
    [(checkpoint.FORMAT + 1, "Install a newer dltrain"), (1, OLDER), (0, OLDER), (None, OLDER), ("2", OLDER)],
)
def test_another_format_is_refused_by_name_with_what_to_do(tmp_path: Path, version: object, advice: str) -> None:
    path = tmp_path / "last.pt"
    checkpoint.save(path, content() | {"format": version})
    with pytest.raises(InputError) as caught:
        checkpoint.load(path)
    message = f"{path}: a checkpoint of format {version}; this dltrain reads format {checkpoint.FORMAT}. {advice}"
    assert str(caught.value).startswith(message)


def test_a_checkpoint_of_format_1_which_had_no_digest_gives_its_weights(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    torch.save(content() | {"format": 1}, path)
    with pytest.raises(InputError, match="a checkpoint of format 1; this dltrain reads format 2"):
        checkpoint.load(path)
    assert equal(checkpoint.load_weights(path)[0], dict(content()["model"]))


@pytest.mark.parametrize("key", [None, "model", "state_dict", "model_state_dict"])
def test_weights_are_read_bare_and_under_the_usual_keys(tmp_path: Path, key: str | None) -> None:
    stored = content()["model"]
    torch.save(stored if key is None else {key: stored, "epoch": 3}, tmp_path / "weights.pt")
    assert equal(checkpoint.load_weights(tmp_path / "weights.pt")[0], dict(stored))


def test_entries_that_are_not_tensors_are_dropped_from_the_weights(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(1), "epoch": 3}, tmp_path / "weights.pt")
    assert list(checkpoint.load_weights(tmp_path / "weights.pt")[0]) == ["weight"]


def test_weights_are_copied_if_name_and_shape_match_and_the_rest_is_reported(tmp_path: Path) -> None:
    torch.save({"0.weight": torch.ones(3, 2), "1.weight": torch.ones(9, 3), "old": torch.ones(4)}, tmp_path / "w.pt")
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 3, bias=False), nn.Linear(3, 1))
    assert weights.copy_matching(network, torch.load(tmp_path / "w.pt"), tmp_path / "w.pt", is_partial=False) == [
        "1 of 3 tensors taken, 60 % of the numbers",
        "1.bias (1,): not in the file, left as initialised",
        "1.weight: (9, 3) in the file, (1, 3) in the model",
        "old (4,): not in the model",
    ]
    assert torch.equal(network[0].weight, torch.ones(3, 2))


def test_weights_of_another_model_are_an_input_error(tmp_path: Path) -> None:
    torch.save({"other": torch.ones(1)}, tmp_path / "w.pt")
    with pytest.raises(InputError, match="no weight in it matches the model"):
        weights.copy_matching(nn.Linear(1, 1), torch.load(tmp_path / "w.pt"), tmp_path / "w.pt", is_partial=True)


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A run's folder with both checkpoints."""
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    for name in ("last.pt", "best.pt"):
        (tmp_path / "run" / "checkpoints" / name).write_bytes(b"")
    return tmp_path / "run"


@pytest.mark.parametrize("given", [".", "checkpoints", "checkpoints/best.pt"])
def test_a_checkpoint_is_found_from_a_run_a_folder_or_itself(run_folder: Path, given: str) -> None:
    assert checkpoint.find(run_folder / given, "best.pt") == run_folder / "checkpoints" / "best.pt"


def test_a_checkpoint_file_may_have_any_name(run_folder: Path) -> None:
    named = run_folder / "checkpoints" / "last.pt"
    assert checkpoint.find(named, "best.pt") == named


def test_a_folder_without_checkpoints_is_refused_with_the_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected checkpoints/best\.pt in it, found none"):
        checkpoint.find(tmp_path, "best.pt")


@pytest.mark.parametrize("given", [".", "checkpoints"])
def test_without_a_best_checkpoint_the_last_one_is_used(run_folder: Path, given: str) -> None:
    (run_folder / "checkpoints" / "best.pt").unlink()
    assert checkpoint.find(run_folder / given, "best.pt") == run_folder / "checkpoints" / "last.pt"


@pytest.mark.parametrize("name", ["nowhere", "nowhere/best.pt", "nul\0byte"])
def test_a_missing_path_is_an_input_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="no such file or folder") as caught:
        checkpoint.find(tmp_path / name, "best.pt")
    assert caught.value.exit_code == 66


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "Input/output error"), OSError(errno.ESTALE, "Stale file handle"), MemoryError()]
)
def test_a_temporarily_unreadable_checkpoint_is_left_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    path = tmp_path / "last.pt"
    for step in (1, 2):
        checkpoint.save(path, content() | {"step": step}, keep=2)

    def fails(*_: object) -> None:
        raise error

    for place in ("verified_size", "read"):
        with monkeypatch.context() as patch, pytest.raises(InputError, match=r"could not be read|not enough memory"):
            patch.setattr(archive, place, fails)
            checkpoint.load_newest(path)
    assert checkpoint.load_newest(path)[0] == path
    assert sorted(each.name for each in tmp_path.iterdir()) == ["last-1.pt", "last.pt"]
