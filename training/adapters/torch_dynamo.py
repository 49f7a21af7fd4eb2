"""A change to PyTorch: `torch._dynamo`, the compiler of `torch.compile`, is imported on first use.

Lightning imports it for one `isinstance` check, and every optimizer of torch imports it for two
functions that do nothing outside of compiled code. The import takes as long as that of torch
itself, and the train stage compiles nothing.
"""

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

NAME = "torch._dynamo"


def import_dynamo_on_first_use() -> None:
    """Let `torch._dynamo` be imported when it is used. Call it before Lightning is imported."""
    if NAME in sys.modules:
        return
    spec = importlib.util.find_spec(NAME)
    assert spec
    module = importlib.util.module_from_spec(spec)
    module.__dict__.update(_STAND_INS)
    module.__class__ = _NotYetImported
    sys.modules[NAME] = module
    sys.meta_path.insert(0, _SubmoduleFinder())


class _NotYetImported(ModuleType):
    """`torch._dynamo` before its first use. It has the stand-ins, and no other attribute."""

    def __getattr__(self, name: str) -> Any:
        _import(self)
        return getattr(self, name)


def _import(module: ModuleType) -> None:
    """Make the module the real one, in place: whoever has imported it has the real one then."""
    for name in _STAND_INS:
        del module.__dict__[name]
    module.__class__ = ModuleType
    assert module.__spec__
    assert module.__spec__.loader
    module.__spec__.loader.exec_module(module)


class _SubmoduleFinder(MetaPathFinder):
    """Imports `torch._dynamo` before any module in it, such as `torch._dynamo.utils`."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find a module that the import of `torch._dynamo` has imported; leave others alone."""
        if not fullname.startswith(f"{NAME}."):
            return None
        sys.meta_path.remove(self)
        if isinstance(sys.modules[NAME], _NotYetImported):
            _import(sys.modules[NAME])
        # Python would load a module that is in sys.modules a second time here.
        module = sys.modules.pop(fullname, None)
        return ModuleSpec(fullname, _Imported(module)) if module else None


class _Imported(Loader):
    """Loads a module that has been imported already.

    Args:
        module: The module.
    """

    def __init__(self, module: ModuleType) -> None:
        self.module, self.spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the module."""
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        """Give the module its own spec back; nothing else is left to do."""
        module.__spec__ = self.spec


class _OptimizedModuleType(type):
    def __instancecheck__(cls, instance: object) -> bool:
        dynamo = sys.modules[NAME]
        if isinstance(dynamo, _NotYetImported):
            return False  # nothing has been compiled yet
        return isinstance(instance, dynamo.OptimizedModule)


class _OptimizedModule(metaclass=_OptimizedModuleType):
    """Stands for the class that `torch.compile` gives a module."""


def _disable(function: Any = None, *_: Any, **__: Any) -> Any:
    """Return the function as it is, since nothing compiles it."""
    return function if function is not None else lambda decorated: decorated


def _graph_break() -> None:
    """Do nothing, as the function of torch does outside of compiled code."""


_STAND_INS = {
    "OptimizedModule": _OptimizedModule,
    "disable": _disable,
    "graph_break": _graph_break,
}
