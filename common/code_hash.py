"""Hashes of the code that makes an artifact: a module and all modules of ours that it imports."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from common.files import sha256_file

PACKAGES = ("common", "features", "training")
REPOSITORY = Path(__file__).parents[1]


def code_hashes(module: str, *, without: tuple[str, ...] = ()) -> dict[str, str]:
    """Return the SHA-256 of a module's file and of every module of ours that it imports.

    Imports are followed through other modules and also where they stand inside functions. The C++
    of a module, such as hash_tables.cpp of hash_tables.py, counts too. Whatever changes the hash of
    an artifact's code makes the artifact stale.

    Args:
        module: The name of the module, such as `features.ingest.shard`.
        without: Beginnings of the names of modules that have no effect on the artifact. They are
            left out, and so is what only they import.

    Returns:
        Module name, or file name for C++ -> SHA-256 in hex, sorted by name.
    """
    paths: dict[str, Path] = {}
    names_to_visit = [module]
    while names_to_visit:
        name = names_to_visit.pop()
        path = _path_of(name)
        if name in paths or name.startswith(without) or not path.is_file():
            continue
        paths[name] = path
        if (cpp := path.with_suffix(".cpp")).is_file():
            paths[f"{name}.cpp"] = cpp
        names_to_visit += _imported_names(path.read_bytes())
    return {name: sha256_file(path) for name, path in sorted(paths.items())}


def _path_of(module: str) -> Path:
    path = REPOSITORY.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def _imported_names(source: bytes) -> tuple[str, ...]:
    """Return what a module imports from PACKAGES: modules, and names that may be modules.

    The result for a text is remembered, because parsing takes most of the time of `code_hashes`.
    """
    return tuple(_find_imported_names(ast.parse(source)))


def _find_imported_names(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if _is_ours(alias.name):
                    yield alias.name
        elif isinstance(node, ast.ImportFrom) and node.module and _is_ours(node.module):
            yield node.module
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] in PACKAGES
