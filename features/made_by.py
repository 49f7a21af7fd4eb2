"""Which code something was made by: a module and every module of its package and of this one that it imports."""

import ast
from pathlib import Path

from features.files import sha256_file


def code_of(module: str, *, without: tuple[str, ...]) -> dict[str, str]:
    """SHA-256 by module, of `module` (PACKAGE.NAME) and of what it imports, directly or through others, but for those in `without`."""
    room = Path(__file__).parent
    packages = {room.name, module.partition(".")[0]}
    found: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        module = waiting.pop()
        path = room.parent.joinpath(*module.split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if module in found or module.startswith(without) or not path.is_file():
            continue
        found[module] = path
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in packages:
                waiting += [f"{node.module}", *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Import):
                waiting += [alias.name for alias in node.names if alias.name.partition(".")[0] in packages]
    return {name: sha256_file(path) for name, path in sorted(found.items())}
