"""Says what a file is that dltrain did not write, what to do with it, and where it holds its weights.

Its first bytes and the names in it are read, within limits, and nothing is imported or run. Imports no torch.
"""

import itertools
import json
import os
import pickletools
import re
import shlex
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

from dltrain.checkpoints import archive, pickle_reader
from dltrain.runtime.errors import InputError, listed, printable

HEAD = 512  # bytes that tell the kind of a file
SAVE = "Where it was made, save the weights alone: torch.save(model.state_dict(), 'weights.pt')"
KINDS: dict[bytes, str] = {
    rb"\Z": "an empty file. Copy or download it again",
    rb"version https://git-lfs": "a Git LFS pointer, not the file itself. Run git lfs pull",
    rb"(?i)(\xef\xbb\xbf)?\s*<(!doctype|html|head|\?xml)": "a web page, not weights. Download it again",
    rb"\x1f\x8b": "compressed with gzip. Unpack it: gunzip < {path} > weights.pt",
    rb"\xfd7zXZ": "compressed with xz. Unpack it: unxz < {path} > weights.pt",
    rb"\x89HDF": "an HDF5 file, as Keras writes. Weights must be torch's, or .safetensors",
    rb"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19\.": "in the old file format of torch. Convert it:\n{convert_old}",
    rb"\x80[\x02-\x05][^\0]": f"a pickle that torch.save did not write. {SAVE}",
    rb"[\t\n\r -~]{1,512}\Z": "a text, not weights. Copy or download it again",
}
OF_TENSORS = re.compile(r"collections OrderedDict|torch\._utils _rebuild_(parameter|tensor_v2)|torch \w+Storage")
# Where weights are kept, in order of preference: the average of the weights is what was validated.
WRAPPERS = ["averages", "ema", "model_ema", "ema_model", "ema_state_dict", "state_dict_ema", "params_ema"]
WRAPPERS += ["model", "state_dict", "model_state_dict", "model_state", "net", "network", "weights", "params", "module"]


def refusal(path: Path, reason: str) -> str:
    """Return why a file is refused: what it is and what to do, or if that is unknown the reason."""
    try:
        with path.open("rb") as file:
            kind = _kind(file, path)
    except Exception:  # a damaged archive or pickle raises nearly anything; the reason is known
        kind = ""
    return f"{path}: {kind or f'not a checkpoint, or a damaged one: {reason}. Take another'}"


def weights_key(content: dict[Any, Any], kind: type, path: Path) -> str | None:
    """Return the key of the weights, tensors of `kind`; None if they are the content. Raises InputError if unclear."""
    parts = {key: part for key, part in content.items() if isinstance(key, str) and isinstance(part, dict)}
    holders = [key for key, part in parts.items() if _has(part, kind)]
    known = [key for key in WRAPPERS if key in holders]
    if known or not holders or _has(content, kind):
        return known[0] if known else None
    if len(holders) > 1:
        keys = _listed(list(map(repr, holders)))
        raise InputError(f"{path}: holds tensors under {keys}. Save the one to use alone: torch.save(content[KEY], …)")
    return holders[0]


def _has(content: dict[Any, Any], kind: type) -> bool:
    return any(isinstance(key, str) and isinstance(value, kind) for key, value in content.items())


def _kind(file: BinaryIO, path: Path) -> str:
    """Return what a file is and what to do with it; an empty text if that is unknown."""
    head = file.read(HEAD)
    for pattern, text in KINDS.items():
        if re.match(pattern, head):
            old = _conversion(path, "torch.load({}, weights_only=True)")
            return text.format(path=shlex.quote(str(path)), convert_old=old)
    return _kind_of_archive(file, path) if head.startswith(archive.BEGIN) else ""


def _kind_of_archive(file: BinaryIO, path: Path) -> str:
    if not zipfile.is_zipfile(file):
        return "incomplete, its end is missing. Copy or download it again"
    archive.check_ends(file, file.seek(0, os.SEEK_END))  # its directory is of bounded size
    with zipfile.ZipFile(file) as entries:
        names = entries.namelist()
        if any("/code/__torch__" in name or name.endswith("/constants.pkl") for name in names):
            return "a TorchScript model. Convert it:\n" + _conversion(path, "torch.jit.load({}).state_dict()")
        if not (pickled := [name for name in names if name.endswith("/data.pkl")]):
            return f"a zip archive of {_listed(names)}. Unpack it: unzip {shlex.quote(str(path))}"
        with entries.open(pickled[0]) as part:
            data = part.read(archive.MOST_PICKLED)
    instructions = itertools.islice(pickletools.genops(data), pickle_reader.MOST_STEPS)
    found = [str(argument) for opcode, argument, _ in instructions if opcode.name in ("GLOBAL", "INST")]
    foreign = [name.replace(" ", ".") for name in dict.fromkeys(found) if not OF_TENSORS.fullmatch(name)]
    whose = "a whole model" if any(name.startswith("torch.nn.modules.") for name in foreign) else "a checkpoint"
    return f"{whose} that holds {_listed(foreign)}, not only tensors and plain values. {SAVE}" if foreign else ""


def _conversion(path: Path, load: str) -> str:
    """Return the command that writes what `load` reads from a path to new.pt, in torch's present format."""
    weights = load.format(json.dumps(str(path), ensure_ascii=False))
    return "python -c " + shlex.quote(f'import torch; torch.save({weights}, "new.pt")')


def _listed(names: list[str]) -> str:
    """Return up to three untrusted names for a message, and how many more there are."""
    return listed([printable(name[:60]) for name in names], 3)
