"""A file of another program is told by what it is, in at most three lines with what to do; nothing of it runs."""

import argparse
import contextlib
import functools
import gzip
import io
import lzma
import pickle
import random
import re
import shlex
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import safetensors.torch
import torch
from torch import nn

from dltrain.checkpoints import archive, checkpoint, foreign_files
from dltrain.checkpoints.pickle_reader import TensorInfo
from dltrain.commands import inspection
from dltrain.runtime.errors import InputError
from support.command import Command
from support.hostile import MARK, instructions, of_pickle, packed, saved
from support.mutations import by_archive, by_bytes, by_pickle
from support.tiers import counts, mostly_slow

NETWORK = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))


def old_format() -> bytes:
    buffer = io.BytesIO()
    torch.save(NETWORK.state_dict(), buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def torchscript() -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(NETWORK, torch.zeros(1, 2)), buffer)
    return buffer.getvalue()


def arrays() -> bytes:
    buffer = io.BytesIO()
    numpy.savez(buffer, images=numpy.zeros(3))
    return buffer.getvalue()


WEIGHTS = NETWORK.state_dict()
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 46827520\n"
ALONE = r"save the weights alone: torch\.save\(model\.state_dict\(\), "
NAMED: dict[str, tuple[Callable[[], bytes], str]] = {
    "a Git LFS pointer": (lambda: POINTER, r"a Git LFS pointer, .* Run git lfs pull$"),
    "a web page": (lambda: b"\n<!DOCTYPE html>\n<html>", r"a web page, not weights\. Download it again$"),
    "a page with a byte-order mark": (lambda: b"\xef\xbb\xbf<html>", r"a web page"),
    "an answer of a server": (lambda: b'<?xml version="1.0"?><Error/>', r"a web page"),
    "a text": (lambda: b'{"message": "Not Found"}', r"a text, not weights"),
    "an empty file": (lambda: b"", r"an empty file\. Copy or download it again$"),
    "a cut file": (lambda: saved(WEIGHTS)[:-600], r"incomplete, its end is missing\. Copy or download it again$"),
    "gzip": (lambda: gzip.compress(saved(WEIGHTS)), r"compressed with gzip\. Unpack it: gunzip < \S*it\.pt > "),
    "xz": (lambda: lzma.compress(saved(WEIGHTS)), r"compressed with xz\. Unpack it: unxz < "),
    "HDF5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(90), r"an HDF5 file, as Keras writes"),
    "arrays of NumPy": (arrays, r"a zip archive of images\.npy\. Unpack it"),
    "other files": (
        lambda: packed({str(n): b"" for n in range(5)}),
        r"a zip archive of archive/0, archive/1, archive/2 and 2 more",
    ),
    "a pickle": (lambda: pickle.dumps({"weight": numpy.zeros(3)}), f"a pickle that torch.save did not write.*{ALONE}"),
    "a pickled model": (lambda: saved(NETWORK), rf"a whole model that holds torch\.nn\.modules\..*{ALONE}"),
    "TorchScript": (torchscript, r"a TorchScript model\. Convert it:\npython -c "),
    "the old format": (old_format, r"in the old file format of torch\. Convert it:\npython -c "),
    "a namespace": (
        lambda: saved({"model": WEIGHTS, "args": argparse.Namespace(lr=0.1)}),
        rf"a checkpoint that holds argparse\.Namespace, not only tensors and plain values\. .*{ALONE}",
    ),
    "values of NumPy": (
        lambda: saved({"model": WEIGHTS, "accuracy": numpy.float64(0.5)}),
        rf"a checkpoint that holds numpy\S*\.scalar, numpy\.dtype, .*{ALONE}",
    ),
}


def refused(action: Callable[[], object]) -> str:
    with pytest.raises(InputError) as caught:
        action()
    assert len(str(caught.value).splitlines()) <= 3
    return str(caught.value)


@pytest.mark.parametrize("name", NAMED)
def test_what_a_file_is_and_what_to_do_is_told_wherever_it_is_read(dltrain: Command, name: str) -> None:
    make, expected = NAMED[name]
    Path("it.pt").write_bytes(make())
    for read in (checkpoint.load, checkpoint.load_weights):
        assert re.search(rf"^it\.pt: {expected}", refused(functools.partial(read, Path("it.pt"))), re.DOTALL)
    for words in (("inspect", "it.pt"), ("eval", "ckpt=it.pt"), ("train", "init=it.pt")):
        result = dltrain(*words)
        assert (result.code, result.out) == (66, "")
        assert re.search(rf"^error: it\.pt: {expected}", result.err.strip(), re.DOTALL), result.err
    assert not Path("outputs").exists()


def test_inspect_names_bare_weights(dltrain: Command) -> None:
    Path("w.safetensors").write_bytes(safetensors.torch.save({"w": torch.zeros(2)}))
    result = dltrain("inspect", "w.safetensors")
    expected = "error: w.safetensors: bare weights, without a config. Use them with init=w.safetensors\n"
    assert (result.code, result.err) == (66, expected)


def test_a_pointer_in_place_of_the_last_checkpoint_is_named_by_resume(dltrain: Command) -> None:
    Path("run/checkpoints").mkdir(parents=True)
    Path("run/checkpoints/last.pt").write_bytes(POINTER)
    result = dltrain("train", "resume=run")
    assert (result.code, "a Git LFS pointer" in result.err) == (66, True)


@pytest.mark.parametrize("make", [old_format, torchscript])
def test_the_command_of_the_message_converts_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[], bytes]
) -> None:
    monkeypatch.chdir(tmp_path)
    odd = Path('o\'ld "$x".pt')
    odd.write_bytes(make())
    python, option, code = shlex.split(refused(lambda: checkpoint.load_weights(odd)).splitlines()[1])
    assert (python, option) == ("python", "-c")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(code, {})
    found = checkpoint.load_weights(Path("new.pt"))[0]
    assert found.keys() == WEIGHTS.keys() and all(torch.equal(found[key], WEIGHTS[key]) for key in found)


def test_safetensors_under_another_suffix_are_read(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(safetensors.torch.save(dict(WEIGHTS)))
    assert checkpoint.load_weights(tmp_path / "pytorch_model.bin")[0].keys() == WEIGHTS.keys()


# --- where the weights are


@pytest.mark.parametrize("key", ["net", "ema", "model_state", "model_ema", "weights", "params", "something"])
def test_weights_under_any_single_key_are_used_and_the_key_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, key: str
) -> None:
    path = tmp_path / "it.pt"
    torch.save({"epoch": 3, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}, key: WEIGHTS}, path)
    with caplog.at_level("INFO", logger="dltrain"):
        assert checkpoint.load_weights(path)[0].keys() == WEIGHTS.keys()
    assert f"init: took the weights under '{key}'" in caplog.text


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"model": {"a": 1}, "ema": {"a": 1}}, "ema"),
        ({"state_dict": {"a": 1}, "model_ema": {"a": 1}}, "model_ema"),
        ({"ema": {"decay": "0.99"}, "net": {"a": 1}}, "net"),
        ({"ema": {}, "model": {"a": 1}}, "model"),
        ({"step": 1, "net": {"a": 1}}, "net"),
        ({"rng": {"cpu": 1}, "model": {"a": 1}}, "model"),
        ({"a": 1, "extra": {"b": 1}}, None),
        ({"a": 1}, None),
        ({0: {"a": 1}}, None),
        ({"a": {0: 1}}, None),
        ({"a": "text"}, None),
        ({}, None),
    ],
)
def test_averages_come_first_then_known_keys_then_tensors_beside_each_other(
    content: dict[Any, Any], expected: str | None
) -> None:
    assert foreign_files.weights_key(content, int, Path("it.pt")) == expected


def test_tensors_under_several_unknown_keys_are_an_input_error_that_names_them(dltrain: Command) -> None:
    torch.save({"generator": WEIGHTS, "discriminator": WEIGHTS}, "gan.pt")
    for words in (("train", "init=gan.pt"), ("inspect", "gan.pt")):
        result = dltrain(*words)
        assert (result.code, "holds tensors under 'generator', 'discriminator'. Save" in result.err) == (66, True)


def test_inspect_shows_the_weights_under_their_key(dltrain: Command) -> None:
    torch.save({"epoch": 3, "net": WEIGHTS}, "it.pt")
    out = dltrain("inspect", "it.pt").out
    assert "kind         weights under 'net', not a checkpoint of dltrain" in out
    assert "weights      4 tensors, 13 numbers" in out


# --- hostile files


def test_nothing_that_a_pickle_names_is_run_or_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("it.pt")
    for data in instructions(MARK).values():
        for content in (data, of_pickle(data)):
            path.write_bytes(content)
            assert len(foreign_files.refusal(path, "the reason").splitlines()) <= 3
    path.write_bytes(of_pickle(instructions(MARK)["os.system"]))
    assert "a checkpoint that holds os.system, not only" in foreign_files.refusal(path, "the reason")
    assert not Path(MARK).exists()


HEADER = b"\x80\x02"
BOMBS: dict[str, Callable[[], bytes]] = {
    "deep nesting": lambda: of_pickle(HEADER + b"(]" * 1_000_000 + b"."),
    "a text of 2**62": lambda: of_pickle(HEADER + b"\x8d" + (2**62).to_bytes(8, "little") + b"a"),
    "bytes of 2**32": lambda: of_pickle(HEADER + b"B\xff\xff\xff\xff."),
    "a number of 2**31 bytes": lambda: of_pickle(HEADER + b"\x8b\xff\xff\xff\x7f."),
    "a long name": lambda: of_pickle(HEADER + b"c" + b"a" * 4_000_000 + b"\nb\n."),
    "many names": lambda: of_pickle(HEADER + b"".join(b"cos\nx%d\n" % n for n in range(100_000)) + b"."),
    "a page of control characters": lambda: b"<html>\x1b[2J" * 1000,
    "a compressed data.pkl of 200 MB": lambda: packed({"data.pkl": bytes(200_000_000)}, method=8),
    "many entries": lambda: packed([(f"{n}", b"") for n in range(70_000)]),
}


@pytest.mark.parametrize("name", mostly_slow(BOMBS, fast=["deep nesting", "a text of 2**62", "a long name"]))
def test_a_file_that_claims_to_be_large_is_told_in_bounded_memory(tmp_path: Path, name: str) -> None:
    path = tmp_path / "it.pt"
    path.write_bytes(BOMBS[name]())
    tracemalloc.start()
    told = foreign_files.refusal(path, "the reason")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 80 << 20
    assert len(told) < 1000 and len(told.splitlines()) <= 3
    assert told.replace("\n", "").isprintable()


@functools.cache
def bases() -> list[bytes]:
    return [make() for make, _ in NAMED.values()] + [saved({"net": WEIGHTS, "epoch": 3})]


def foreign(number: int) -> bytes:
    """A mutated, cut or random file; each depends only on its number."""
    rng = random.Random(number)
    data = rng.choice(bases())
    change = rng.choice((by_bytes, by_archive, by_pickle))
    with contextlib.suppress(Exception):  # not every change is one for every file
        data = change(data, rng)
    if rng.random() < 0.2:
        data = data[: rng.randrange(len(data) + 1)]
    if rng.random() < 0.2:
        data = rng.choice((b"", b"PK\3\4", b"\x80\x02", b"\x1f\x8b", b"<html", bytes(8) + b'{"')) + rng.randbytes(200)
    return data


@counts(300, 3_000, 20_000)
def test_mutated_cut_and_random_files_are_read_or_refused_in_brief(tmp_path: Path, count: int) -> None:
    path, refusals = tmp_path / "it.pt", 0
    for number in range(count):
        path.write_bytes(foreign(number))
        for read in (checkpoint.load_weights, lambda path: list(inspection.lines(path))):
            try:
                read(path)
            except InputError as error:
                assert len(str(error).splitlines()) <= 3 and len(str(error)) < 1000, number
                refusals += 1
            except Exception as error:
                raise AssertionError(f"number {number}: {error!r}") from error
    assert refusals > count


def test_tensors_of_torch_and_of_the_reader_are_found_alike(tmp_path: Path) -> None:
    path = tmp_path / "it.pt"
    torch.save({"epoch": 1, "net": WEIGHTS}, path)
    with path.open("rb") as file:
        read = archive.read(file, path.stat().st_size)
    assert foreign_files.weights_key(read, TensorInfo, path) == "net"
