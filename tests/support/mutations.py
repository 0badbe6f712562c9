"""Random mutations of a checkpoint, in its bytes and in each layer of its structure.

Each depends only on its number, so that a failure can be reproduced from the number in its message.
"""

import copy
import functools
import io
import pickletools
import random
import re
import struct
import warnings
from collections.abc import Callable
from typing import Any

import torch

from support.hostile import bare, digested, entries, packed, saved

KINDS = ("bytes", "digested bytes", "archive", "pickle", "content")
EDGES = [0, 1, 2, -1, 127, 255, 256, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64]
TEXTS = ["", "a", "a.b", "a:b", "\0", "\n" * 9, "\udc80", "é" * 300, "-1", "nan", "1e999", "null", "../../a", "data.pk"]
TEXTS += ["a" * 5000, "${seed}", "${oc.env:HOME}", "${", "[bold]", "cpu", "cuda:99", "mlp", "sgd", "0", "\x1b[2J"]
DEEP: list[Any] = functools.reduce(lambda inner, _: [inner], range(70), [])
NAN, INF = float("nan"), float("inf")
VALUES: list[Any] = [None, True, False, -(2**63), 10**400, 0.0, -0.5, 1e-320, 1e308, NAN, INF, 1j, b"a", [], {}, ()]
VALUES += [[None], [[]], [{}], {"a": {"b": {"c": []}}}, {1: 2}, [-1.0, NAN], [1] * 3000, {1, 2}, DEEP, torch.float64]
VALUES += [torch.Size([2]), *EDGES, *TEXTS]
KEYS = ["", "a", "a.b", "name", "model", "state_dict", "format", "_target_", -1, 0, 2**64, True, None, 1.5, (1,), "\n"]
TENSORS: list[Callable[[torch.Tensor], Any]] = [
    *(torch.Tensor.double, torch.Tensor.half, torch.Tensor.bool, torch.Tensor.long, torch.Tensor.byte),
    *(torch.Tensor.flatten, torch.Tensor.tolist, torch.nn.Buffer, lambda t: t.to(torch.complex64), lambda t: t[None]),
    *(lambda t: t.flatten()[:0], lambda t: t.flatten()[:-1], lambda t: t.mT if t.ndim > 1 else t, lambda t: -t.float()),
    *(lambda t: t * NAN, lambda t: t * INF, lambda t: torch.ones(()), lambda t: torch.ones(9, 9)),
    *(lambda t: t.float().requires_grad_(), lambda t: torch.nn.Parameter(t.float())),
]

RECORDS = {b"\3\4": "HHHHHLLLHH", b"\1\2": "HHHHHHLLLHHHHHLL", b"\6\6": "QHHLLQQQQ", b"\6\7": "LQL", b"\5\6": "HHHHLLH"}
NAMES = ["data.PKL", "data/0", "data/00", f"data/{10**30}", "data/", "data/-1", "", "../a", "a" * 300, "version", "é"]
NAMES += ["byteorder", ".format_version", ".storage_alignment", ".data/serialization_id", "constants.pkl", "data.pkl/a"]
PARTS = [b"", b"big", b"little", b"BIG", b"0\n", b"99\n", b"-1", b"\xff", b"3", b"64", b"\0" * 5000]
GLOBALS = ["torch FloatStorage", "torch DoubleStorage", "torch BoolStorage", "torch ByteStorage", "torch QInt8Storage"]
GLOBALS += ["collections OrderedDict", "collections Counter", "torch Size", "torch float32", "torch device"]
GLOBALS += [f"torch._utils _rebuild_{name}" for name in ("parameter", "tensor_v2", "tensor_v3")] + ["builtins set"]


def by_bytes(base: bytes, rng: random.Random) -> bytes:
    """Flip, cut, double, move or overwrite a few bytes, half of them in places that define the structure."""
    data = bytearray(base)
    spots = [match.start() for match in re.finditer(rb"PK..|data\.pkl|\x80\x02|byteorder|sha256", base, re.DOTALL)]
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at = rng.choice(spots) + rng.randrange(-8, 64) if rng.random() < 0.5 else rng.randrange(len(base))
        at, length = min(max(at, 0), max(len(data) - 1, 0)), rng.choice((1, 1, 2, 4, 8, 100, 5000))
        part, how = data[at : at + length], rng.randrange(7)
        if how < 2:
            data[at : at + 1] = bytes([data[at] ^ 1 << rng.randrange(8)]) if data else b"a"
        elif how == 2:
            data[at : at + length] = b""
        elif how == 3:
            data[at:at] = part if rng.random() < 0.5 else rng.randbytes(length)
        elif how == 4:
            data[at : at + length] = rng.choice((b"\0", b"\xff", b"\x80")) * len(part)
        elif how == 5:
            to = rng.randrange(len(data) + 1)
            data[at : at + length] = data[to : to + length]
            data[to : to + length] = part
        else:
            del data[at if rng.random() < 0.3 else max(len(data) - length, 0) :]
    return bytes(data)


def by_archive(body: bytes, rng: random.Random) -> bytes:
    """Drop, double, rename, move or resize entries, or set fields of the ZIP records to edge values."""
    if rng.random() < 0.5:
        data = bytearray(body)
        records = list(re.finditer(b"PK(\3\4|\1\2|\6\6|\6\7|\5\6)", body))
        for _ in range(rng.choice((1, 1, 2, 3))):
            record = rng.choice(records if rng.random() < 0.5 else records[-3:])
            fields = RECORDS[record[1]]
            index = rng.randrange(len(fields))
            at, field = record.start() + 4 + struct.calcsize("<" + fields[:index]), f"<{fields[index]}"
            (old,) = struct.unpack_from(field, data, at)
            new = rng.choice((*EDGES, old + 1, old - 1, old * 2, old ^ 1 << rng.randrange(16), len(body)))
            struct.pack_into(field, data, at, new % (1 << 8 * struct.calcsize(field)))
        return bytes(data)
    parts = list(entries(body).items())
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(len(parts)) if rng.random() < 0.6 else rng.choice((0, -1, -2, -3))
        at = max(at, -len(parts)) % len(parts)
        (name, part), how = parts[at], rng.randrange(6)
        if how == 0 and len(parts) > 1:
            del parts[at]
        elif how == 1:
            parts.insert(rng.randrange(len(parts)), (name if rng.random() < 0.5 else rng.choice(NAMES), part))
        elif how == 2:
            parts[at] = (rng.choice(NAMES), part)
        elif how == 3:
            parts[at] = (name, rng.choice((part[:-1], part[: len(part) // 2], part + b"\0", part * 2, part[1:])))
        elif how == 4:
            parts[at] = (name, rng.choice(PARTS))
        else:
            rng.shuffle(parts)
    return packed(parts, method=rng.choice((0,) * 9 + (8,)), prefix=rng.choice(("archive/",) * 9 + ("", "a/b/", "é/")))


def by_pickle(body: bytes, rng: random.Random) -> bytes:
    """Drop, double, move or replace instructions of data.pkl, or set numbers and texts to edge values."""
    parts = entries(body)
    pickled = parts["data.pkl"]
    opcodes = [(opcode.name, argument, at) for opcode, argument, at in pickletools.genops(pickled)]
    ends = [at for *_, at in opcodes[1:]] + [len(pickled)]
    steps = [(name, argument, pickled[at:end]) for (name, argument, at), end in zip(opcodes, ends, strict=True)]
    for _ in range(rng.choice((1, 1, 2, 4))):
        at, how = rng.randrange(len(steps)), rng.randrange(6)
        if how < 2:  # the next number, text or name after it
            at = next((at for at in range(at, len(steps)) if steps[at][1] is not None), at)
            steps[at] = ("", None, instruction(steps[at][0], rng))
        elif how == 2:
            del steps[at]
            steps = steps or [("", None, b"N")]
        elif how == 3:
            steps.insert(at, rng.choice(steps))
        elif how == 4:
            other = (
                "",
                None,
                rng.choice(pickletools.opcodes).code.encode("latin-1") + rng.choice((b"", b"\1", b"a\n")),
            )
            steps[at] = rng.choice((other, rng.choice(steps)))
        else:
            to = rng.randrange(len(steps))
            steps[at], steps[to] = steps[to], steps[at]
    return packed({**parts, "data.pkl": b"".join(raw for *_, raw in steps)})


def instruction(name: str, rng: random.Random) -> bytes:
    """Return another instruction of the same kind with an edge value; one time in ten of another kind."""
    if rng.random() < 0.1:
        name = rng.choice(("GLOBAL", "BINUNICODE", "BINGET", "BININT", "BINFLOAT"))
    if name == "GLOBAL":
        return b"c" + rng.choice(GLOBALS).replace(" ", "\n").encode() + b"\n"
    if name == "BINUNICODE":
        data = rng.choice(TEXTS).encode(errors="surrogatepass")
        return b"X" + struct.pack("<L", rng.choice((len(data),) * 9 + (2**32 - 1,))) + data
    if name in ("BINPUT", "BINGET", "LONG_BINPUT", "LONG_BINGET"):
        return rng.choice((b"q", b"h", b"r\0\0\0", b"j\0\0\0")) + bytes([rng.randrange(256)])
    if name == "BINFLOAT":
        return b"G" + struct.pack(">d", rng.choice((0.0, -1.0, 1e308, float("nan"), float("inf"))))
    value = rng.choice(EDGES)
    return b"\x8a\x0a" + value.to_bytes(10, "little", signed=True)


def by_content(content: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """Replace values by other types and edge values, drop, add and swap keys, anywhere in the tree."""
    changed = copy.deepcopy(content)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        node: Any = changed
        while node:
            key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
            if not isinstance(node[key], dict | list) or not node[key] or rng.random() < 0.15:
                break
            node = node[key]
        else:
            break
        how = rng.randrange(8)
        if how == 0:
            del node[key]
        elif how == 1 and isinstance(node, dict):
            node[rng.choice(KEYS)] = rng.choice((node[key], rng.choice(VALUES)))
        elif how == 2 and isinstance(node, dict):
            node[rng.choice(KEYS)] = node.pop(key)
        elif how == 3:
            other = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
            node[key], node[other] = node[other], node[key]
        elif isinstance(node[key], torch.Tensor) and how < 7:
            node[key] = rng.choice(TENSORS)(node[key])
        elif type(node[key]) is int and how < 7:
            node[key] = rng.choice((*EDGES, node[key] + 1, -node[key], 1.5, str(node[key])))
        elif type(node[key]) is str and how < 6:
            node[key] = rng.choice(TEXTS)
        else:
            node[key] = rng.choice(VALUES)
    return changed


@functools.cache
def loaded(base: bytes) -> dict[str, Any]:
    content = torch.load(io.BytesIO(base), weights_only=True)
    assert isinstance(content, dict)
    return content


def mutated(base: bytes, number: int) -> tuple[str, bytes]:
    """Return the kind and the bytes of mutation `number` of the checkpoint in `base`, or of its bare weights."""
    rng, kind = random.Random(number), KINDS[number % len(KINDS)]
    if kind == "bytes" and rng.random() < 0.2:
        return kind, by_bytes(base, rng)
    is_whole = rng.random() < 0.6
    whole = loaded(base)
    content = whole if is_whole else rng.choice((whole["model"], {"state_dict": whole["model"], "epoch": 3}))
    if kind == "content":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about complex numbers that become real
            changed = saved(by_content(content, rng))
        return f"content of {'checkpoints' if is_whole else 'weights'}", digested(changed)
    body = bare(base) if is_whole else saved(content)
    change = {"archive": by_archive, "pickle": by_pickle}.get(kind, by_bytes)
    seal = digested if kind != "bytes" and (is_whole or rng.random() < 0.5) else bytes
    return kind, seal(change(body, rng))
