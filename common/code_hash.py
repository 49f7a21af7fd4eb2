"""Which code something was made by: a module and every module of its package and of this one that it imports."""

import ast
from pathlib import Path

from common.files import sha256_file

PACKAGES = ("common", "features", "training")


def code_of(module: str, *, without: tuple[str, ...]) -> dict[str, str]:
    """SHA-256 by module, of `module` (PACKAGE.NAME) and of what it imports, directly or through others, but for those in `without`."""
    root = Path(__file__).parents[1]
    found: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        module = waiting.pop()
        path = root.joinpath(*module.split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if module in found or module.startswith(without) or not path.is_file():
            continue
        found[module] = path
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.ImportFrom)
                and (node.module or "").partition(".")[0] in PACKAGES
            ):
                waiting += [
                    f"{node.module}",
                    *(f"{node.module}.{alias.name}" for alias in node.names),
                ]
            elif isinstance(node, ast.Import):
                waiting += [
                    alias.name for alias in node.names if alias.name.partition(".")[0] in PACKAGES
                ]
    return {name: sha256_file(path) for name, path in sorted(found.items())}
