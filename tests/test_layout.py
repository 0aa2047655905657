"""The house rules: which file may import which, sizes, and docstrings that tell the truth."""

from __future__ import annotations

import ast
import doctest
import functools
import importlib
import inspect
import itertools
import re
import sys
from pathlib import Path

import pytest

import strongreg

SOURCE = Path(strongreg.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))

# imports go from a higher number to a lower one; what is not named here is a leaf, 0
_ORDER = (
    ("compression", "decision", "optimizers", "summary"),
    ("collapse", "counts", "pull"),
    ("refit", "strength_control"),
    ("checkpoint", "gpu"),
    ("attachment",),
    ("regularizer",),
    ("__init__", "diagnosis", "integrations"),
    ("experiments",),
    ("cli",),
    ("__main__",),
)
LEVELS = {part: level for level, parts in enumerate(_ORDER, start=1) for part in parts}
CORE_LEVEL = LEVELS["__init__"]
MAX_LINES = 480


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _part(path: Path) -> str:
    """The file or folder directly within the package."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def _level(part: str) -> int:
    return LEVELS.get(part, 0)


def over(files: list[Path]) -> pytest.MarkDecorator:
    """A test of each of these files."""
    return pytest.mark.parametrize("path", files, ids=[path.relative_to(SOURCE).as_posix() for path in files])


CORE = [path for path in FILES if _level(_part(path)) <= CORE_LEVEL]
LEAVES = [path for path in FILES if _level(_part(path)) == 0]
every_file = over(FILES)


def _imports(path: Path) -> set[str]:
    """Every module a file imports, at its top or within a function."""
    found: set[str] = set()
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            found.add(node.module or "")
            if node.module == "strongreg":
                modules = {path.stem for path in SOURCE.iterdir()}
                found |= {f"strongreg.{alias.name}" for alias in node.names if alias.name in modules}
    return found


# ---------------------------------------------------------------------- imports and sizes


@every_file
def test_imports_go_one_way(path):
    """Down the levels, or within the same folder; leaves may use one another."""
    part, level = _part(path), _level(_part(path))
    others = {name.split(".")[1] for name in _imports(path) if name.startswith("strongreg.")} - {part}
    assert [name for name in sorted(others) if level > 0 and _level(name) >= level] == []
    assert [name for name in sorted(others) if level == 0 and _level(name) > 0] == []


@over(CORE)
def test_the_core_needs_nothing_but_torch_and_numpy(path):
    imports = _imports(path)
    roots = {name.split(".")[0] for name in imports} - set(sys.stdlib_module_names)
    # within a function, or in the file of a host: tests/test_import.py sees that none is loaded with the package
    optional = {
        "compression": {"safetensors", "onnx", "onnxruntime", "onnxscript"},
        "integrations": {path.stem},
        "kernels": {"numba", "llvmlite", "triton"},
        "sweeps": {"optuna", "sqlalchemy"},
    }.get(_part(path), set())
    assert roots <= {"torch", "numpy", "strongreg"} | optional
    assert "strongreg" not in imports


@over(LEAVES)
def test_leaves_do_not_touch_optimizers(path):
    code = _tree(path)
    for node in ast.walk(code):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            node.body[0] = ast.Pass()
    assert "torch.optim" not in ast.unparse(code)


@every_file
def test_the_library_does_not_print(path):
    calls = [node.func for node in ast.walk(_tree(path)) if isinstance(node, ast.Call)]
    assert not [func for func in calls if isinstance(func, ast.Name) and func.id == "print"]


@every_file
def test_files_are_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


# ---------------------------------------------------------------------- public names


@pytest.mark.parametrize("name", strongreg.__all__)
def test_every_public_name_is_there_and_documented(name):
    public = getattr(strongreg, name)
    assert inspect.getdoc(public)
    assert public.__doc__
    assert public.__module__.startswith("strongreg.")


def test_the_list_of_public_names_is_complete_and_has_no_doubles():
    imported = {
        alias.asname or alias.name
        for node in ast.walk(_tree(SOURCE / "__init__.py"))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert sorted(set(strongreg.__all__)) == sorted(strongreg.__all__)
    assert set(strongreg.__all__) == imported


@pytest.mark.parametrize("package", ["penalties", "gates"])
def test_public_names_of_the_packages_are_public_in_strongreg(package):
    module = importlib.import_module(f"strongreg.{package}")
    assert set(module.__all__) <= set(strongreg.__all__)
    assert all(getattr(module, name) is getattr(strongreg, name) for name in module.__all__)


# ---------------------------------------------------------------------- docstrings

_ARGUMENT = re.compile(r"^ {4}(\*{0,2}\w+)(?: \([^)]*\))?:")
_Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def _documented(docstring: str) -> list[str] | None:
    """The names in the Args section of a Google style docstring, None without the section."""
    lines = inspect.cleandoc(docstring).splitlines()
    if "Args:" not in lines:
        return None
    section = itertools.takewhile(lambda line: not line or line.startswith(" "), lines[lines.index("Args:") + 1 :])
    return [argument[1].lstrip("*") for line in section if (argument := _ARGUMENT.match(line))]


def _arguments(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    a = function.args
    every = [*a.posonlyargs, *a.args, *([a.vararg] if a.vararg else []), *a.kwonlyargs, *([a.kwarg] if a.kwarg else [])]
    names = [argument.arg for argument in every]
    return names[1:] if names[:1] in (["self"], ["cls"]) else names


def _is_dataclass(node: ast.ClassDef) -> bool:
    return any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)


def _is_field(node: ast.stmt) -> bool:
    return isinstance(node, ast.AnnAssign) and "ClassVar" not in ast.unparse(node.annotation)


def _constructor(node: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> list[str]:
    """The arguments of a class's constructor, those of inherited dataclass fields first."""
    for member in node.body:
        if isinstance(member, ast.FunctionDef) and member.name == "__init__":
            return _arguments(member)
    inherited = [classes[base.id] for base in node.bases if isinstance(base, ast.Name) and base.id in classes]
    names = [name for base in inherited for name in _constructor(base, classes)]
    own = [m.target.id for m in node.body if _is_field(m)] if _is_dataclass(node) else []
    return names + [name for name in own if name not in names]


def _public(nodes: list[ast.stmt], prefix: str = "") -> list[tuple[str, _Definition]]:
    found: list[tuple[str, _Definition]] = []
    for node in nodes:
        if isinstance(node, _Definition) and not node.name.startswith("_"):
            found.append((f"{prefix}{node.name}", node))
            found += _public(node.body, f"{prefix}{node.name}.") if isinstance(node, ast.ClassDef) else []
    return found


def _is_property(node: _Definition) -> bool:
    return any("property" in ast.unparse(decorator) for decorator in node.decorator_list)


def _mismatches(path: Path, classes: dict[str, ast.ClassDef]) -> list[str]:
    wrong: list[str] = []
    for name, node in _public(_tree(path).body):
        docstring = ast.get_docstring(node, clean=False)
        if docstring is None:
            wrong.append(f"{name}: no docstring")
            continue
        documented = _documented(docstring)
        actual = _constructor(node, classes) if isinstance(node, ast.ClassDef) else _arguments(node)
        # an override refers to the method whose contract it keeps; a property has no arguments
        refers = documented is None and (docstring.startswith("See :") or _is_property(node))
        if not refers and (documented or []) != actual:
            wrong.append(f"{name}: documents {documented}, takes {actual}")
    return wrong


@functools.cache
def _all_classes() -> dict[str, ast.ClassDef]:
    return {node.name: node for path in FILES for node in ast.walk(_tree(path)) if isinstance(node, ast.ClassDef)}


@every_file
def test_docstrings_name_exactly_the_real_arguments(path):
    """The commands of the command line are excepted: their docstrings are help texts, their options say their own."""
    if _part(path) != "cli":
        assert _mismatches(path, _all_classes()) == []


def test_the_check_of_docstrings_finds_mismatches(tmp_path):
    path = tmp_path / "module.py"
    path.write_text(_MODULE)
    assert _mismatches(
        path, {node.name: node for node in ast.parse(_MODULE).body if isinstance(node, ast.ClassDef)}
    ) == [
        "renamed: documents ['b'], takes ['a']",
        "missing: documents ['a'], takes ['a', 'kw']",
        "extra: documents ['a'], takes []",
        "without: documents None, takes ['a']",
        "Field.method: no docstring",
        "Heir: documents ['y'], takes ['x', 'y']",
    ]


_MODULE = '''
def right(a: int, *args: int, c: int = 1) -> None:
    """Do.

    Args:
        a: first,
            b: not an argument.
        *args: more.
        c: last.

    Returns:
        d: no argument.
    """
def renamed(a):
    """Do.

    Args:
        b: other.
    """
def missing(a, **kw):
    """Do.

    Args:
        a: first.
    """
def extra():
    """Do.

    Args:
        a: first.
    """
def without(a):
    """Do."""
def _private(a):
    """Do."""
@dataclass(frozen=True)
class Field:
    """Have.

    Args:
        x: one.
    """
    x: int
    def method(self, a): ...
    def other(self, a):
        """See :meth:`right`."""
@dataclass
class Heir(Field):
    """Have.

    Args:
        y: two.
    """
    y: int
'''


@over([path for path in FILES if _part(path) != "__main__"])
def test_examples_in_docstrings_run(path):
    try:
        module = importlib.import_module(_module_name(path))
    except ModuleNotFoundError as error:
        if path in CORE or (error.name or "").startswith("strongreg"):
            raise
        pytest.skip(f"the optional dependency {error.name} is missing")
    report: list[str] = []
    runner = doctest.DocTestRunner()
    for test in doctest.DocTestFinder(exclude_empty=True).find(module, module.__name__):
        runner.run(test, out=report.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(report)


@pytest.mark.parametrize("name", [n for n in strongreg.__all__ if not inspect.isabstract(getattr(strongreg, n))])
def test_every_part_that_a_user_builds_shows_an_example(name):
    contents = {"History", "PackedContents", "ExportedFile", "ShrinkReport", "SparsifyReport", "SparsifyRow", "Summary"}
    contents |= {"SearchResult", "SearchTrial"}
    built_by_the_library = contents | {"SummaryRow", "PackedFileError", "ExportError", "ShrinkError", "StudyError"}
    assert name in built_by_the_library or ">>> " in inspect.getdoc(getattr(strongreg, name))
