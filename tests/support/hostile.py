"""Malicious checkpoints: archives and pickles crafted by hand, with a valid digest or none."""

import copy
import io
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from dltrain.checkpoints import archive

SMALL = ("train", "model=mlp", "model.hidden=[2]", "data.limit=100", "batch_size=32", "device=cpu", "device.threads=1")
END = b"PK\5\6"
MARK = "ran"  # the folder that each of them tries to create


def digested(body: bytes) -> bytes:
    return body + archive.trailer(body)


def bare(data: bytes) -> bytes:
    """Return the archive of a checkpoint, without the digest after it."""
    return data[: -archive.TRAILER_SIZE]


def saved(content: Any) -> bytes:
    """Return any content as torch saves it."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def entries(body: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(body)) as packed:
        return {entry.filename.partition("/")[2]: packed.read(entry) for entry in packed.infolist()}


def packed(parts: dict[str, bytes] | list[tuple[str, bytes]], *, method: int = 0, prefix: str = "archive/") -> bytes:
    """Return an archive of these entries, as Python's zipfile writes it."""
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w") as written:
        warnings.simplefilter("ignore", UserWarning)  # about duplicate names
        for name, data in parts.items() if isinstance(parts, dict) else parts:
            info = zipfile.ZipInfo(prefix + name)
            info.compress_type = method
            written.writestr(info, data)
    return buffer.getvalue()


def of_pickle(data: bytes, storages: dict[str, bytes] | None = None) -> bytes:
    """Return an archive as torch writes it, with any pickle inside."""
    of_storages = {f"data/{key}": held for key, held in (storages or {}).items()}
    return packed({"data.pkl": data, "byteorder": b"little", **of_storages, "version": b"3\n"})


def two_directories(seen: bytes, hidden: bytes) -> bytes:
    """Return an archive that Python reads as `seen`, but a reader that follows the end record's offset as `hidden`."""
    with zipfile.ZipFile(io.BytesIO(hidden)) as read:
        start, count = read.start_dir, len(read.infolist())
    with zipfile.ZipFile(io.BytesIO(seen)) as read:
        directory = seen[read.start_dir : -22]
        body = seen[: read.start_dir]
    assert len(read.infolist()) == count
    return hidden[:-22] + body + directory + struct.pack("<4s4H2LH", END, 0, 0, count, count, len(directory), start, 0)


class Calls:
    """An object whose pickle calls a function when it is loaded."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.parts = function, arguments

    def __reduce__(self) -> Any:
        return self.parts


def text(value: str) -> bytes:
    """Return the pickle instruction BINUNICODE for a string."""
    data = value.encode()
    return b"X" + struct.pack("<L", len(data)) + data


def instructions(mark: str) -> dict[str, bytes]:
    """Return pickles that no pickler writes, or that would run code in pickle.loads, by name."""
    system = b"cos\nsystem\n"
    command = text(f"mkdir {mark}")
    head = b"\x80\x02"
    ordered = b"ccollections\nOrderedDict\n)R"
    return {
        "os.system": head + system + command + b"\x85R.",
        "posix.system": head + b"cposix\nsystem\n" + command + b"\x85R.",
        "eval": head + b"cbuiltins\neval\n" + text(f"__import__('os').mkdir({mark!r})") + b"\x85R.",
        "exec of Python 2": head + b"c__builtin__\nexecfile\n" + command + b"\x85R.",
        "INST": b"(" + command + b"ios\nsystem\n.",
        "OBJ": b"(" + system + command + b"o.",
        "NEWOBJ": head + system + command + b"\x85\x81.",
        "NEWOBJ_EX": b"\x80\x04" + system + command + b"\x85}\x92.",
        "STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x06system\x93" + command + b"\x85R.",
        "EXT1": head + b"\x82\x01.",
        "EXT4": head + b"\x84\1\0\0\0.",
        "getattr": head + b"cbuiltins\ngetattr\n" + b"cos\npath\n" + text("os") + b"\x86R.",
        "torch.load": head + b"ctorch\nload\n" + text("other.pt") + b"\x85R.",
        "numpy.load": head + b"cnumpy\nload\n" + text("other.npy") + b"\x85R.",
        "numpy.savetxt": head + b"cnumpy\nsavetxt\n" + text(mark) + b"]\x86R.",
        "torch.hub.load": head + b"ctorch.hub\nload\n" + text(".") + text("x") + b"\x86R.",
        "a storage of 10**12": head + b"ctorch\nFloatStorage\n\x8a\x06" + (10**12).to_bytes(6, "little") + b"\x85R.",
        "a bytearray of 10**12": head + b"cbuiltins\nbytearray\n\x8a\x06" + (10**12).to_bytes(6, "little") + b"\x85R.",
        "a Tensor": head + b"ctorch\nTensor\n(lM\xff\xffM\xff\xff\x86\x85R.",
        "a Parameter's setstate": head + b"ctorch.nn.parameter\nParameter\n)\x81" + command + b"\x85b.",
        "attributes of a dict": head + ordered + b"}" + text("items") + command + b"sb.",
        "attributes named as torch's own": head + ordered + b"}" + text("_metadata") + command + b"sb.",
        "attributes of a class": head + system + b"}" + text("x") + command + b"sb.",
        "a persistent name of text": b"Pos.system\n.",
        "a persistent name of code": head + b"(" + text("storage") + system + text("0") + text("cpu") + b"K\1tQ.",
        "a buffer": b"\x80\x05\x97.",
        "POP of code": head + system + command + b"\x85R0N.",
        "a frame": b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f" + system + command + b"\x85R.",
        "a key that is code": head + b"}" + system + b"K\1s.",
        "lower torch": head + b"ctorch._utils\n_rebuild_wrapper_subclass\n" + system + b"\x85R.",
        "a dynamic library": head + b"cctypes\nCDLL\n" + text("libc.so.6") + b"\x85R.",
        "a decoder": head + b"c_codecs\nencode\n" + command + text("zlib_codec") + b"\x86R.",
        "a name with dots": head + b"ctorch\nserialization.os.system\n" + command + b"\x85R.",
        "a name without module": head + b"c\nsystem\n" + command + b"\x85R.",
        "set": head + b"cbuiltins\nset\n]\x85R.",
    }


def archives(mark: str, honest: bytes) -> dict[str, bytes]:
    """Return archives that different readers read differently, each with a pickle that creates a folder, by name."""
    evil = instructions(mark)["os.system"]
    parts = entries(honest)
    renamed = bytearray(packed(parts))
    at = renamed.index(b"archive/data.pkl")
    renamed[at : at + 16] = b"archive/data.PKL"
    legacy = io.BytesIO()
    torch.save({"model": {"w": torch.ones(2)}, "config": {}}, legacy, _use_new_zipfile_serialization=False)
    hostile_legacy = pickle.dumps(Calls(Path.mkdir, Path(mark)), protocol=2)
    evil_archive = packed({**parts, "data.pkl": evil})
    hostile = {
        "legacy": legacy.getvalue(),
        "legacy that runs": hostile_legacy,
        "a pickle before the archive": hostile_legacy + honest,
        "legacy before the archive": legacy.getvalue() + honest,
        "a tar": b"./ustar".ljust(512, b"\0") + honest,
        "torchscript": packed({**parts, "constants.pkl": evil, "code/__torch__.py": b"import os"}),
        "constants.pkl": packed({**parts, "constants.pkl": evil}),
        "pt2": packed({"archive_format": b"pt2", "models/model.json": b"{}", "data/weights/model.pt": evil, **parts}),
        "two data.pkl": packed([("data.pkl", evil), *parts.items()]),
        "two data.pkl, the honest one first": packed([*parts.items(), ("data.pkl", evil)]),
        "data.PKL": packed([("data.PKL", evil), *parts.items()]),
        "data.pkl at the top": packed([*parts.items(), ("../data.pkl", evil)]),
        "a path upwards": packed([*parts.items(), (f"../../{mark}", evil)]),
        "an absolute path": packed({"archive" + name: data for name, data in parts.items()}, prefix="/"),
        "backslashes": packed({f"a\\{name}": data for name, data in parts.items()}),
        "a name behind a zero": packed([*parts.items(), ("data/9#.py", evil)]).replace(b"9#.py", b"9\0.py"),
        "a nested archive": packed([*parts.items(), ("inner/data.pkl", evil)]),
        "a nested pickle": packed(
            {**parts, "data.pkl": b"\x80\x02" + b"B" + struct.pack("<L", len(evil)) + evil + b"."}
        ),
        "local header of another name": bytes(renamed),
        "an archive in the comment": honest[:-2] + struct.pack("<H", len(evil_archive)) + evil_archive,
        "an archive behind it": honest + evil_archive,
        "an archive before it": evil_archive + honest,
        "another directory": two_directories(packed(parts), evil_archive),
        "another directory by its other end": other_end(honest, evil_archive),
        "deflated": packed(parts, method=zipfile.ZIP_DEFLATED),
        "encrypted": with_flag(packed(parts), 1),
        "no data.pkl": packed({name: data for name, data in parts.items() if name != "data.pkl"}),
        "two prefixes": packed(
            {("" if name == "data.pkl" else "../other/") + name: data for name, data in parts.items()}
        ),
    }
    for name, data in instructions(mark).items():
        hostile[name] = packed({**parts, "data.pkl": data})
    for name, function, arguments in (
        ("subprocess", __import__("subprocess").Popen, (["mkdir", mark],)),
        ("pathlib", Path.mkdir, (Path(mark),)),
        ("socket", __import__("socket").socket, ()),
        ("import", __import__, ("antigravity",)),
    ):
        hostile[name] = saved({"model": {}, "config": {}, "format": 1, "extra": Calls(function, *arguments)})
    return hostile


def other_end(honest: bytes, evil: bytes) -> bytes:
    """Return an archive with two ZIP64 end records: torch follows the offset to one, other readers take the last."""
    with zipfile.ZipFile(io.BytesIO(evil)) as read:
        start, count = read.start_dir, len(read.infolist())
    length = len(evil) - 22 - start
    large = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, length, start)
    shifted = relocated(honest, len(evil) + len(large))
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, len(evil), 1)
    return evil + large + shifted[:-42] + locator + shifted[-22:]


def relocated(body: bytes, shift: int) -> bytes:
    """Return an archive written by torch with all offsets moved by `shift` bytes."""
    data = bytearray(body)
    *_, length, start = struct.unpack("<4Q", data[-98 + 24 : -98 + 56])
    at = start
    while at < start + length:
        (offset,) = struct.unpack_from("<L", data, at + 42)
        struct.pack_into("<L", data, at + 42, offset + shift)
        at += 46 + sum(struct.unpack_from("<3H", data, at + 28))
    struct.pack_into("<Q", data, len(data) - 98 + 48, start + shift)
    struct.pack_into("<Q", data, len(data) - 42 + 8, len(data) - 98 + shift)
    struct.pack_into("<L", data, len(data) - 6, start + shift)
    return bytes(data)


def with_flag(body: bytes, flag: int) -> bytes:
    """Return an archive with a flag set for each entry in the central directory."""
    data = bytearray(body)
    at = data.index(b"PK\1\2")
    while data[at : at + 4] == b"PK\1\2":
        data[at + 8] |= flag
        at += 46 + sum(struct.unpack_from("<3H", data, at + 28))
    return bytes(data)


CODE = ("os:system", "os:mkdir", "subprocess:Popen", "builtins:eval", "builtins:exec", "evil:run", "evil.deep:run")
CODE += ("pathlib:Path.mkdir", "torch:load", "numpy:load", "torch.hub:load", "hydra.utils:instantiate", "os.path:os")
NODES = ("model", "optim", "schedule", "task", "data")


def configs(honest: dict[str, Any], mark: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield configs of a checkpoint that name code, with a label; each must be refused."""

    def changed(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        config = copy.deepcopy(honest)
        change(config)
        return config

    def put(key: str, value: Any) -> dict[str, Any]:
        *parents, last = key.split(".")

        def change(config: dict[str, Any]) -> None:
            node = config
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = value

        return changed(change)

    for node in NODES:
        for name in CODE[: 13 if node == "model" else 4]:
            yield f"{node}.name={name}", put(f"{node}.name", name)
        yield (
            f"{node}.name refers to code",
            changed(lambda config, node=node: config.update(name="os:system") or config[node].update(name="${name}")),
        )
        for name in ("os.system", "_target_", "../evil", "__init__", "evil", "${oc.decode:'os:mkdir'}"):
            yield f"{node}.name={name}", put(f"{node}.name", name)
        for key in ("_target_", "_args_", "_partial_", "_instantiator", "_class_path", "class_path"):
            yield f"{node}.{key}", put(f"{node}.{key}", "os.mkdir")
        yield f"{node} is a list", put(node, ["os:system", mark])
        yield f"{node} is text", put(node, "os:system")
        yield f"{node}.name is a group", put(f"{node}.name", {"_target_": "os.mkdir", "path": mark})
    for name in CODE:
        yield f"hooks=[{name}]", put("hooks", [name])
    for hooks in (
        "os:system",
        ["os.system"],
        [["os:mkdir"]],
        [{"name": "os:mkdir"}],
        {"os:mkdir": 1},
        ["evil"],
        [None],
    ):
        yield f"hooks={hooks}", put("hooks", hooks)
    yield "hooks refer to code", changed(lambda config: config.update(name="evil:run", hooks=["${name}"]))
    yield "_target_", put("_target_", "os.mkdir")
    yield "device.name", put("device.name", "os:system")
    yield "device of a GPU that runs", put("device.precision", "os:system")
    yield "hydra", put("hydra", {"callbacks": {"x": {"_target_": "os.mkdir", "path": mark}}})
    yield "a value that is a group", put("model.dropout", {"_target_": "os.mkdir", "path": mark})
    yield "a value that is code", put("model.activation", "os:system")
    yield "a resolver that is not there", put("seed", '${eval:\'__import__("os").mkdir("ran")\'}')
    yield "a resolver of hydra", put("seed", "${hydra:runtime.cwd}")
    yield "a name of a thousand lines", put("model.name", "evil:\n" * 500)
