"""The sources call nothing by which a file or a config could run code."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "src" / "dltrain"
MODULES = sorted(PACKAGE.rglob("*.py"))
FORBIDDEN = {"eval", "exec", "compile", "__import__", "instantiate", "get_object", "get_class", "get_method", "locate"}
FORBIDDEN |= {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
SHELLS = {"system", "popen", "spawnl", "spawnv", "execv", "execl"}


def name_of(node: ast.expr) -> str:
    """Dotted name of what is called: `torch.load`."""
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def faults(source: str) -> list[str]:
    """Calls and imports in a source that could run what a file says."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            found += [name for name in modules if FORBIDDEN & set(name.split("."))]
        elif isinstance(node, ast.Call):
            name, keywords = name_of(node.func), {word.arg: word.value for word in node.keywords}
            last = name.rpartition(".")[2]
            # A model's own .eval() switches dropout off; the builtin has no dot before it. torch.compile takes no text.
            is_method = (last == "eval" and "." in name) or name in ("re.compile", "torch.compile")
            if last in FORBIDDEN and not is_method:
                found.append(name)
            if (name.startswith("os.") and last in SHELLS) or isinstance(keywords.get("shell"), ast.Constant):
                found.append(name)
            safe = keywords.get("weights_only")
            if name == "torch.load" and not (isinstance(safe, ast.Constant) and safe.value is True):
                found.append(name)
            reads_array = last == "load" and name.startswith(("numpy.", "np."))
            pickled = keywords.get("allow_pickle")
            if (reads_array or pickled) and not (isinstance(pickled, ast.Constant) and pickled.value is False):
                found.append(name)
            loaders = {name_of(argument) for argument in [*node.args, *keywords.values()]}
            if name.startswith("yaml.") and "load" in last and last != "safe_load":
                found += [name] if not loaders & {"yaml.BaseLoader", "yaml.SafeLoader"} else []
    return found


def test_no_module_calls_a_function_that_executes_file_contents() -> None:
    found = {str(module.relative_to(PACKAGE)): faults(module.read_text(encoding="utf-8")) for module in MODULES}
    assert {name: calls for name, calls in found.items() if calls} == {}


DANGEROUS = [
    "eval('1')",
    "exec(text)",
    "import pickle",
    "from pickle import load",
    "hydra.utils.instantiate(node)",
    "from hydra.utils import instantiate",
    "torch.load(path)",
    "torch.load(path, weights_only=False)",
    "numpy.load(path)",
    "numpy.load(path, allow_pickle=True)",
    "numpy.load(path, allow_pickle=allowed)",
    "numpy.lib.format.read_array(file, allow_pickle=True)",
    "yaml.load(text, yaml.Loader)",
    "os.system('ls')",
    "subprocess.run('ls', shell=True)",
    "torch.jit.load(path); __import__(name)",
]


def test_the_source_scan_detects_forbidden_calls() -> None:
    assert [source for source in DANGEROUS if not faults(source)] == []


def test_modules_are_imported_by_name_in_only_three_places() -> None:
    """For dltrain's own options, for what a user named with a colon, and for the two names of the Python API."""
    users = {path.stem for path in MODULES if "import_module" in path.read_text(encoding="utf-8")}
    assert users == {"__init__", "registry", "signatures"}
