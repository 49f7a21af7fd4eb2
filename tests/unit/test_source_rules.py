"""Rules for the source code that ruff, mypy and import-linter cannot check."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from features.schema.schema import SCHEMAS, load_schema
from tests.factories.support import ROOT

PACKAGES = ("common", "features", "serving", "training", "flows")
CODE = sorted(
    path for room in (*PACKAGES, "benchmarks", "docker") for path in (ROOT / room).rglob("*.py")
)

ORDINARY_WORDS = {"label", "click", "hour", "id"}
DTYPES = {"I8"}  # names of safetensors, of which one is a column of Criteo as well
LABELS_AND_COLUMNS = {
    name for path in SCHEMAS.glob("*.yaml") for name in load_schema(path.stem).names
}
COLUMNS = re.compile(
    rf"(?<!\w)({'|'.join(sorted(LABELS_AND_COLUMNS - ORDINARY_WORDS - DTYPES))})(?!\w)"
)
# The readers of Polars that have the parameter `glob`, which is True unless it is given.
PATTERN_READER = re.compile(r"(pl|polars)\.(scan|read)_(parquet|csv|ndjson|ipc)")
CODE_LOADERS = {
    "pickle",
    "cPickle",
    "_pickle",
    "cloudpickle",
    "dill",
    "joblib",
    "marshal",
    "shelve",
}

each_file = pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def constants(module: ast.Module) -> Iterator[ast.Constant]:
    """Yield every literal except docstrings."""
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    bodies = [node.body for node in ast.walk(module) if isinstance(node, owners) and node.body]
    docstrings = {id(body[0].value) for body in bodies if isinstance(body[0], ast.Expr)}
    return (
        node
        for node in ast.walk(module)
        if isinstance(node, ast.Constant) and id(node) not in docstrings
    )


def column_names(module: ast.Module) -> list[str]:
    """Find column names, which only a schema may contain, each as `line: name`."""
    names: list[tuple[int, object]] = [
        (node.lineno, node.value)
        for node in constants(module)
        if isinstance(node.value, str) and COLUMNS.search(node.value)
    ]
    names += [
        (node.lineno, node.id)
        for node in ast.walk(module)
        if isinstance(node, ast.Name) and COLUMNS.fullmatch(node.id)
    ]
    return [f"{line}: {value!r}" for line, value in names]


def code_loaders(module: ast.Module) -> list[str]:
    """Find calls and imports that can run code contained in data, each as `line: call`."""
    calls = []
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            calls += [
                f"{node.lineno}: import {alias.name}"
                for alias in node.names
                if alias.name.split(".")[0] in CODE_LOADERS
            ]
        elif (
            isinstance(node, ast.ImportFrom)
            and node.module
            and node.module.split(".")[0] in CODE_LOADERS
        ):
            calls.append(f"{node.lineno}: from {node.module} import")
        elif isinstance(node, ast.Call):
            call = ast.unparse(node.func)
            keywords = [ast.unparse(keyword) for keyword in node.keywords]
            if call in ("eval", "exec", "yaml.load") or (
                call == "torch.load" and "weights_only=True" not in keywords
            ):
                calls.append(f"{node.lineno}: {call}")
            if "allow_pickle=True" in keywords:
                calls.append(f"{node.lineno}: allow_pickle=True")
    return calls


def pattern_readers(module: ast.Module) -> list[str]:
    """Find calls of Polars that take a path with brackets for a pattern, each as `line: call`."""
    return [
        f"{node.lineno}: {ast.unparse(node.func)}"
        for node in ast.walk(module)
        if isinstance(node, ast.Call)
        and PATTERN_READER.fullmatch(ast.unparse(node.func))
        and "glob=False" not in [ast.unparse(keyword) for keyword in node.keywords]
    ]


def test_the_rules_see_the_code_and_the_schemas() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in CODE} >= set(PACKAGES)
    assert len(COLUMNS.pattern) > 100


@each_file
def test_only_a_schema_names_columns(path: Path) -> None:
    assert column_names(tree(path)) == []


@each_file
def test_no_code_contained_in_data_is_run(path: Path) -> None:
    assert code_loaders(tree(path)) == []


@pytest.mark.parametrize(
    "path",
    [path for path in CODE if path.relative_to(ROOT).parts[0] in PACKAGES],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_no_path_is_taken_for_a_pattern(path: Path) -> None:
    assert pattern_readers(tree(path)) == []


@pytest.mark.parametrize(
    ("code", "count"),
    [
        ("pl.scan_parquet(path)", 1),
        ("polars.read_csv(path, glob=True)", 1),
        ("pl.read_parquet(path, glob=False)\nread_parquet(path)\npq.read_table(path)", 0),
    ],
)
def test_the_search_for_readers_of_patterns(code: str, count: int) -> None:
    assert len(pattern_readers(ast.parse(code))) == count


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("f'{x}\\tI1'", ["1: '\\tI1'"]),
        ("columns = ['C26']", ["1: 'C26'"]),
        ("C4 = 1", ["1: 'C4'"]),
        ("'''C26'''\nx = 27\ny = 'C261'\nz = 13.5", []),
        ("def f():\n    '''13 dense columns, I1 first'''\n    return 'C2'", ["3: 'C2'"]),
    ],
)
def test_the_search_for_column_names(code: str, expected: list[str]) -> None:
    assert column_names(ast.parse(code)) == expected


@pytest.mark.parametrize(
    ("code", "count"),
    [
        ("import pickle", 1),
        ("from joblib.numpy_pickle import load", 1),
        ("eval('1')", 1),
        ("torch.load(path)", 1),
        ("torch.load(path, weights_only=False)", 1),
        ("np.load(path, allow_pickle=True)", 1),
        ("torch.load(path, weights_only=True)\nmodel.eval()\nnp.load(path)\nimport json", 0),
    ],
)
def test_the_search_for_code_loaders(code: str, count: int) -> None:
    assert len(code_loaders(ast.parse(code))) == count
