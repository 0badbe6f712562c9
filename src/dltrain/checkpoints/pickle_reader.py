"""Read what torch.save pickled without unpickling it, with an interpreter for the few instructions that torch writes.

Tensors come out as dtype and shape. All but plain values is refused, above all references to code. Imports no torch.
"""

import pickletools
from dataclasses import dataclass
from typing import Any

MOST_VALUES = 1_000_000
MOST_TEXT = 1 << 25  # characters; a text that is referenced twice counts twice
MOST_STEPS = 300_000  # a ResNet-50 with Adam has 30,000
DEEPEST = 64
SIZES = {"Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2, "Char": 1, "Byte": 1}
SIZES |= {"Bool": 1, "ComplexFloat": 8, "ComplexDouble": 16}  # bytes per number, by the name of the storage


class UnsafePickle(ValueError):
    """A checkpoint file is damaged or unsafe to load; the message is the reason in a few words."""


@dataclass(frozen=True)
class TensorInfo:
    """Dtype and shape of a tensor whose numbers are not read."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class _Global:
    name: str


@dataclass(frozen=True)
class _Storage:
    kind: str
    numbers: int


def values(data: bytes, storages: dict[str, int]) -> Any:
    """Return what is pickled in `data`, tensors as TensorInfo; `storages` are sizes in bytes. Raises UnsafePickle."""
    try:
        content = _Unpickler(storages).read(data)
    except UnsafePickle:
        raise
    except Exception as error:  # a damaged pickle raises nearly anything
        raise UnsafePickle(f"its values are damaged ({type(error).__name__})") from error
    _check_amount(content)
    return content


class _Unpickler:
    """Interprets the few pickle instructions that torch.save writes for tensors and plain values."""

    def __init__(self, storages: dict[str, int]) -> None:
        self.storages = storages
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def read(self, data: bytes) -> Any:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if count > MOST_STEPS:
                raise UnsafePickle(f"it has more than {MOST_STEPS:,} instructions")
            self.step(opcode.name, argument)
        (value,) = self.stack
        return value

    def step(self, name: str, argument: Any) -> None:
        stack = self.stack
        match name:
            case "PROTO" if argument != 2:  # torch reads others too, with a warning
                raise UnsafePickle(f"it has values that torch does not write (protocol {argument})")
            case "PROTO" | "STOP":
                pass
            case "BINUNICODE" | "BININT" | "BININT1" | "BININT2" | "BINFLOAT" | "LONG1":
                stack.append(argument)
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
            case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_TUPLE":
                stack.append({"EMPTY_DICT": {}, "EMPTY_LIST": [], "EMPTY_TUPLE": ()}[name])
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])
            case "MARK":
                self.marks.append(len(stack))
            case "TUPLE":
                stack.append(tuple(self.since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "APPEND" | "APPENDS":
                parts = [stack.pop()] if name == "APPEND" else self.since_mark()
                self.top(list).extend(parts)
            case "SETITEM" | "SETITEMS":
                parts = [stack.pop(-2), stack.pop()] if name == "SETITEM" else self.since_mark()
                if not all(type(key) in (str, int) for key in parts[::2]):
                    raise UnsafePickle("it has keys that are neither text nor whole numbers")
                self.top(dict).update(zip(parts[::2], parts[1::2], strict=True))
            case "GLOBAL":
                stack.append(_Global(argument))
            case "BINPERSID":
                stack.append(self.storage(*stack.pop()))
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                stack.append(self.call(function, arguments))
            case "BUILD":
                _check_attributes(stack.pop())
                self.top(dict)
            case _:
                raise UnsafePickle(f"it has values that torch does not write ({name})")

    def since_mark(self) -> list[Any]:
        start = self.marks.pop()
        parts = self.stack[start:]
        del self.stack[start:]
        return parts

    def top(self, kind: type) -> Any:
        if type(self.stack[-1]) is not kind:
            raise UnsafePickle(f"it has a {type(self.stack[-1]).__name__} where a {kind.__name__} belongs")
        return self.stack[-1]

    def storage(self, tag: str, kind: _Global, key: str, location: str, numbers: int) -> _Storage:
        name = kind.name.removeprefix("torch ").removesuffix("Storage")
        kinds = type(key), type(location), type(numbers)
        if (tag, kind.name) != ("storage", f"torch {name}Storage") or name not in SIZES or kinds != (str, str, int):
            raise UnsafePickle(f"it has a storage of an unknown type ({kind.name[:60]})")
        if numbers < 0 or numbers * SIZES[name] > self.storages[key]:
            raise UnsafePickle(f"it claims {numbers:,} numbers where it has {self.storages[key]:,} bytes")
        return _Storage(name, numbers)

    def call(self, function: Any, arguments: Any) -> Any:
        """Return what one of the three known functions would return, without calling it."""
        match function, arguments:
            case _Global("collections OrderedDict"), ():
                return {}
            case _Global("torch._utils _rebuild_parameter"), (TensorInfo() as data, bool(), dict(hooks)) if not hooks:
                return data
            case (
                _Global("torch._utils _rebuild_tensor_v2"),
                (_Storage() as storage, int(offset), tuple(shape), tuple(stride), bool(), dict(hooks)),
            ) if not hooks:
                if not _fits(storage.numbers, offset, shape, stride):
                    raise UnsafePickle("it has a tensor that exceeds its storage or overlaps itself")
                return TensorInfo(storage.kind.lower(), shape)
        raise UnsafePickle(f"it names code ({str(getattr(function, 'name', type(function).__name__))[:60]})")


def _check_attributes(state: Any) -> None:
    """Raise UnsafePickle for attributes of an OrderedDict other than a state dict's `_metadata`, such as `items`."""
    known = state.get("_metadata") if isinstance(state, dict) and list(state) == ["_metadata"] else None
    if not isinstance(known, dict) or not all(type(name) is str and isinstance(of, dict) for name, of in known.items()):
        raise UnsafePickle("it has attributes that torch does not write")
    if not all(type(of.get("version", 1)) is int and "assign_to_params_buffers" not in of for of in known.values()):
        raise UnsafePickle("it has attributes that torch does not write")


def _fits(numbers: int, offset: int, shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """True if a view lies in its storage and uses each number once: stride 0 would repeat one number without limit."""
    if not all(type(each) is int and each >= 0 for each in (offset, *shape, *stride)) or len(shape) != len(stride):
        return False
    if 0 in shape:
        return offset <= numbers and max(shape) <= 1 << 40
    last = 0
    for step, side in sorted((step, side) for side, step in zip(shape, stride, strict=True) if side > 1):
        if step <= last:
            return False
        last += (side - 1) * step
    return offset + last < numbers


def _check_amount(content: Any) -> None:
    """Raise UnsafePickle if values are nested too deeply or too many; each counts as often as it is referenced."""
    amounts: dict[int, tuple[int, int]] = {}  # values, and characters in them
    inside: set[int] = set()
    stack: list[tuple[Any, bool]] = [(content, False)]
    while stack:
        value, is_done = stack.pop()
        if not isinstance(value, dict | list | tuple):
            continue
        parts = [*value, *value.values()] if isinstance(value, dict) else value
        if is_done:
            inside.discard(id(value))
            sizes = [amounts.get(id(part)) or (1, len(part) if isinstance(part, str) else 0) for part in parts]
            amounts[id(value)] = 1 + sum(count for count, _ in sizes), sum(length for _, length in sizes)
            if amounts[id(value)][0] > MOST_VALUES or amounts[id(value)][1] > MOST_TEXT:
                raise UnsafePickle(f"it has more than {MOST_VALUES:,} values, or {MOST_TEXT:,} characters")
        elif id(value) in inside:
            raise UnsafePickle("it has a value that contains itself")
        elif id(value) not in amounts:
            inside.add(id(value))
            if len(inside) > DEEPEST:
                raise UnsafePickle(f"it has values nested deeper than {DEEPEST} levels")
            stack.append((value, True))
            stack.extend((part, False) for part in parts)
