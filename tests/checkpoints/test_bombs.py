"""Small files that claim to be large are refused at once, with no more memory than honest ones take.

The whole versions run with `-m torture`; what runs by default are short ones of each.
"""

import contextlib
import ctypes
import functools
import io
import pickle
import resource
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dltrain import cli
from dltrain.checkpoints import archive, checkpoint
from dltrain.config.resolution import Config
from dltrain.runtime.errors import UserError
from dltrain.training import restore
from support.faults import forked
from support.hostile import SMALL, digested, entries, of_pickle, packed, saved, text
from support.tiers import mostly_slow

FREE = 48 << 20  # bytes that reading a small file may take besides: buffers, and what its values are in Python
SECONDS = 1.0  # of processor time: other processes do not count
HEAD = b"\x80\x02"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
ORDERED = b"ccollections\nOrderedDict\n)R"


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The content of the last checkpoint of a run."""
    folder = tmp_path_factory.mktemp("bombs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            assert cli.main([*SMALL, "epochs=2", "limit_steps=4", "log_every=3", "keep=1", "optim=adam"]) == 0
    return checkpoint.load(next(folder.glob("outputs/*/*/checkpoints/last.pt")))


def number(value: int) -> bytes:
    data = value.to_bytes(9, "little")
    return b"\x8a\x09" + data


def tensor(numbers: int, shape: list[int], stride: list[int], *, offset: int = 0, key: str = "0") -> bytes:
    """A pickled tensor of floats."""
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu") + number(numbers) + b"tQ"
    sides, steps = (b"(" + b"".join(map(number, values)) + b"t" for values in (shape, stride))
    return REBUILD + b"(" + storage + number(offset) + sides + steps + b"\x89" + ORDERED + b"tR"


def weights(*tensors: bytes, storage: int = 4096) -> bytes:
    """A file of bare weights."""
    items = b"".join(text(f"w{index}") + each for index, each in enumerate(tensors))
    return of_pickle(HEAD + b"}(" + items + b"u.", {"0": bytes(storage)})


def nested(opening: bytes, closing: bytes, depth: int) -> bytes:
    return of_pickle(HEAD + opening * depth + b"N" + closing * depth + b".")


def laughs(level: Callable[[int], bytes], levels: int = 40) -> bytes:
    """Lists, each of ten times the one before it."""
    first = b"]q\x00"
    return of_pickle(HEAD + b"]" + first + b"".join(level(index) for index in range(levels)) + b"e.")


def overlapping(honest: bytes, copies: int) -> bytes:
    """An archive whose directory names the same bytes many times."""
    parts = entries(honest)
    body = packed({**parts, "data/900": bytes(1 << 20)})
    with zipfile.ZipFile(io.BytesIO(body)) as read:
        start, count = read.start_dir, len(read.infolist())
    directory = body[start:-22]
    last = directory[directory.rindex(b"PK\1\2") :]
    more = b"".join(last.replace(b"data/900", f"data/{901 + index}".encode()) for index in range(copies))
    count += copies
    end = struct.pack("<4s4H2LH", archive.END, 0, 0, count, count, len(directory + more), start, 0)
    return body[:start] + directory + more + end


def crowded(count: int) -> bytes:
    """An archive of so many entries, all of which are the same bytes; its end tells fewer."""
    body = packed({"data.pkl": HEAD + b"}."})
    with zipfile.ZipFile(io.BytesIO(body)) as read:
        start = read.start_dir
    entry = body[start:-22].replace(b"archive/data.pkl", b"archive/data/%07d")
    directory = b"".join(entry % index for index in range(count))
    small = min(count, 0xFFFF)
    end = struct.pack("<4s4H2LH", archive.END, 0, 0, small, small, len(directory), start, 0)
    return body[:start] + directory + end


def archives() -> dict[str, Callable[[], bytes]]:
    """Files that no one should read."""
    large = 10**12
    honest_body = saved({"w": torch.ones(8)})
    return {
        "deflated": lambda: packed({**entries(honest_body), "data/0": bytes(256 << 20)}, method=zipfile.ZIP_DEFLATED),
        "bzip2": lambda: packed({**entries(honest_body), "data/0": bytes(256 << 20)}, method=zipfile.ZIP_BZIP2),
        "a view of stride 0": lambda: weights(tensor(1, [large], [0]), storage=4),
        "a view of stride 0 in one of two": lambda: weights(tensor(1024, [1024, 10**9], [1, 0])),
        "a view over the end": lambda: weights(tensor(1024, [1024], [1], offset=1)),
        "a view of overlaps": lambda: weights(tensor(1024, [512, 512], [1, 1])),
        "a storage of more than there is": lambda: weights(tensor(large, [1], [1])),
        "an empty view of no end": lambda: weights(tensor(0, [0, 2**62, 2**62], [1, 1, 1])),
        "entries that overlap": lambda: overlapping(honest_body, 5000),
        "a million entries": lambda: crowded(1_000_000),
        "lists in lists": lambda: nested(b"]", b"a", 10_000),
        "tuples in tuples": lambda: of_pickle(HEAD + b"N" + b"\x85" * 10_000 + b"."),
        "dicts in dicts": lambda: nested(b"}K\1", b"s", 10_000),
        "lists in lists, a hundred": lambda: nested(b"]", b"a", 100),
        "laughs": lambda: laughs(lambda index: b"](" + (b"h" + bytes([index])) * 10 + b"eq" + bytes([index + 1])),
        "tuples that laugh": lambda: of_pickle(HEAD + b"N" + b"2\x86" * 60 + b"."),
        "tuples that laugh by memo": lambda: of_pickle(HEAD + b"Nq\0" + b"h\0h\0\x86q\0" * 60 + b"."),
        "a list that holds itself": lambda: of_pickle(HEAD + b"]q\0h\0a."),
        "a long number": lambda: of_pickle(HEAD + b"\x8b" + struct.pack("<L", 1 << 30) + bytes(100) + b"."),
        "a long text": lambda: of_pickle(HEAD + b"X" + struct.pack("<L", 0xFFFFFFF0) + b"a."),
        "long bytes": lambda: of_pickle(b"\x80\x05\x8e" + struct.pack("<Q", 1 << 62) + b"."),
        "a million instructions": lambda: of_pickle(HEAD + b"]" + b"K\1a" * 500_000 + b"."),
        "a million empty lists": lambda: of_pickle(HEAD + b"](" + b"]" * 1_000_000 + b"e."),
        "100 MB of text": lambda: of_pickle(HEAD + text("a" * (100 << 20)) + b"."),
        "a memo at 2**32": lambda: of_pickle(HEAD + b"Nr\xff\xff\xff\xff."),
        "a text a thousand times": lambda: of_pickle(
            HEAD + b"](" + text("a" * (1 << 20)) + b"q\0" + b"h\0" * 999 + b"e."
        ),
        "many dimensions": lambda: weights(tensor(1, [1] * 100_000, [1] * 100_000)),
    }


def contents(honest: dict[str, Any]) -> dict[str, Callable[[], dict[str, Any]]]:
    """Checkpoints whose values would grow; each has the form of one."""

    def config(**values: Any) -> Callable[[], dict[str, Any]]:
        def change() -> dict[str, Any]:
            changed = {**honest["config"]}
            for key, value in values.items():
                node, _, last = key.partition("__")
                changed[node] = {**changed[node], last: value} if last else value
            return {**honest, "config": changed}

        return change

    def data(**values: Any) -> Callable[[], dict[str, Any]]:
        return lambda: {**honest, "data": {**honest["data"], **values}}

    def model(name: str, **keys: Any) -> Callable[[], dict[str, Any]]:
        return config(model={"name": name, **keys})

    doubling = {f"a{index}": f"${{a{index + 1}}}${{a{index + 1}}}" for index in range(40)} | {"a40": "laugh"}
    nodes = {f"a{index}": dict.fromkeys("pq", f"${{a{index + 1}}}") for index in range(8)} | {"a8": [1] * 9000}
    lists = {f"a{index}": [f"${{a{index + 1}}}"] * 2 for index in range(40)} | {"a40": "laugh"}
    recurrent = {"cell": "lstm", "bidirectional": False, "pool": "last", "dropout": 0.0}
    heads = {"tokens": "patches", "patch": 7, "heads": 1, "dropout": 0.0, "drop_path": 0.0}
    one = torch.zeros(1000, 1000)
    shared = {f"layers.{2 * index + 1}.weight": one for index in range(600)}
    shared |= {f"layers.{2 * index + 1}.bias": one[0] for index in range(600)}
    deep = {"name": "mlp", "hidden": [1000] * 599, "activation": "relu", "dropout": 0.0, "batch_norm": False}
    return {
        "references that double": config(**doubling),
        "lists of references that double": config(**lists),
        "references to a large list": config(**nodes),
        "a few references that double": config(**dict(list(doubling.items())[-17:])),
        "hidden=[10**9]": config(model__hidden=[10**9]),
        "hidden=[10**6, 10**6]": config(model__hidden=[10**6, 10**6]),
        "hidden of a million": config(model__hidden=[1] * 1_000_000),
        "hidden of a thousand": config(model__hidden=[1] * 1000),
        "layers=10**9": model("lstm", hidden=1, layers=10**9, **recurrent),
        "layers=1000": model("lstm", hidden=1, layers=1000, **recurrent),
        "depth=10**9": model("attention", width=1, depth=10**9, **heads),
        "depth=256": model("attention", width=1, depth=256, **heads),
        "input_shape of 10**9": data(input_shape=[1, 1, 10**9]),
        "input_shape of 65536": data(input_shape=[1, 65536, 65536]),
        "a million classes": data(classes=["a"] * 1_000_000, outputs=1_000_000),
        "a class of no end": data(classes=["a" * 10_000_000] * 10),
        "outputs=10**12": data(outputs=10**12, classes=[]),
        "threads=10**9": lambda: {**honest, "runtime": {"precision": "fp32", "threads": 10**9}},
        "a text of 10 MB": config(name="a" * 10_000_000),
        "a reference of 10 MB": config(name="${oc.env:" + "a" * 10_000_000 + "}"),
        "a reference of many brackets": config(name="${oc.create:" + "[" * 1500 + "]" * 1500 + "}"),
        "weights that share a place": lambda: {
            **honest,
            "config": {**honest["config"], "model": deep},
            "data": {**honest["data"], "input_shape": [1, 1, 1000], "outputs": 1000, "classes": []},
            "model": shared,
        },
    }


def measured(action: Callable[[], Any], before: Callable[[], Any]) -> str:
    """What is wrong with how an error is raised, in a fork that did the same with an honest file before."""

    def child() -> None:
        ctypes.CDLL(None).malloc_trim(0)  # what tests before this one have freed would hide what is taken now
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far
        with contextlib.suppress(UserError):
            before()
        base, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        try:
            action()
            print("not refused")
        except UserError as error:
            if len(str(error).splitlines()) > 3 or len(str(error)) > 2000:
                print(f"told in {len(str(error))} characters")
        seconds = time.process_time() - began
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) * 1024
        if seconds > SECONDS:
            print(f"{seconds:.2f} s")
        if grown > FREE:
            print(f"{grown >> 20} MiB more than an honest file")

    ended = forked(child)
    return (ended.out + ended.err).strip() if ended.code == 0 else f"code {ended.code}: {ended.err[-2000:]}"


def refuse_archives(folder: Path, names: list[str]) -> None:
    """Files are refused by both who read them, with a digest and without."""
    path, good = folder / "bomb.pt", folder / "good.pt"
    good.write_bytes(digested(saved({"w": torch.ones(8)})))
    faults = []
    for name in names:
        body = archives()[name]()
        for read in (checkpoint.load, checkpoint.load_weights):
            for data in (digested(body), body):
                path.write_bytes(data)
                if fault := measured(functools.partial(read, path), functools.partial(read, good)):
                    faults.append(f"{name}, {len(data):,} bytes, {read.__name__}: {fault}")
    assert not faults, "\n".join(faults)


def refuse_contents(folder: Path, honest: dict[str, Any], names: list[str]) -> None:
    """Checkpoints are refused before a network of theirs is built."""
    path, good = folder / "bomb.pt", folder / "good.pt"
    checkpoint.save(good, honest)

    def load(path: Path) -> None:
        device = {"name": "cpu", "precision": "fp32", "threads": 1, "deterministic": False}
        config = {"trust": [], "device": device}
        with contextlib.redirect_stdout(io.StringIO()):
            restore.load_trained(str(path), Config({}, config))

    faults = []
    for name in names:
        checkpoint.save(path, contents(honest)[name]())
        if fault := measured(lambda: load(path), lambda: load(good)):
            faults.append(f"{name}, {path.stat().st_size:,} bytes: {fault}")
    assert not faults, "\n".join(faults)


@pytest.mark.torture
def test_archive_bombs_are_refused_immediately(tmp_path: Path) -> None:
    refuse_archives(tmp_path, list(archives()))


@pytest.mark.torture
def test_checkpoint_bombs_are_refused_immediately(tmp_path: Path, honest: dict[str, Any]) -> None:
    refuse_contents(tmp_path, honest, list(contents(honest)))


SHORT = ["a view of stride 0", "a view of overlaps", "a storage of more than there is", "lists in lists", "laughs"]
SHORT += ["a text a thousand times", "entries that overlap", "a long text", "many dimensions"]


@pytest.mark.parametrize("names", mostly_slow([SHORT[::3], SHORT], fast=[SHORT[::3]]), ids=len)
def test_a_few_archive_bombs_are_refused_immediately(tmp_path: Path, names: list[str]) -> None:
    refuse_archives(tmp_path, names)


SHORT_CONTENTS = ["references that double", "hidden=[10**6, 10**6]", "depth=10**9", "layers=10**9", "threads=10**9"]
SHORT_CONTENTS += [
    "references to a large list",
    "input_shape of 10**9",
    "a reference of many brackets",
    "weights that share a place",
]


@pytest.mark.parametrize(
    "names", mostly_slow([SHORT_CONTENTS[::2], SHORT_CONTENTS], fast=[SHORT_CONTENTS[::2]]), ids=len
)
def test_a_few_checkpoint_bombs_are_refused_immediately(
    tmp_path: Path, honest: dict[str, Any], names: list[str]
) -> None:
    refuse_contents(tmp_path, honest, names)


def test_the_memory_measurement_detects_a_bomb(tmp_path: Path) -> None:
    def grow() -> None:
        torch.zeros(64 << 18).add_(1)
        raise UserError("refused")

    assert "MiB more than an honest file" in measured(grow, lambda: None)
    assert measured(lambda: None, lambda: None) == "not refused"


def test_torch_would_accept_the_strides_of_these_files(tmp_path: Path) -> None:
    """The bomb goes off where it is loaded without care: 10**12 numbers of four bytes."""
    (tmp_path / "bomb.pt").write_bytes(archives()["a view of stride 0"]())
    assert torch.load(tmp_path / "bomb.pt", weights_only=True)["w0"].numel() == 10**12
    assert pickle.loads(HEAD + b"N" + b"2\x86" * 3 + b".") == ((((None,) * 2,) * 2,) * 2)
