"""A change to imports: modules that Lightning imports and training does not use wait for their use.

- `torch._dynamo`, the compiler of `torch.compile`. Lightning imports it for one `isinstance` check,
  and every optimizer of torch imports it for two functions that do nothing outside of compiled
  code.
- `scipy.signal`, where SciPy is installed. torchmetrics, which Lightning imports, imports it to see
  whether it has the name `hamming`.

The first takes as long to import as torch itself, and the second two thirds of that.
"""

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

DYNAMO = "torch._dynamo"


def delay_unused_imports() -> None:
    """Let these modules be imported when they are used. Call it before Lightning is imported."""
    for name in _STAND_INS:
        if name not in sys.modules and (spec := _find(name)):
            module = importlib.util.module_from_spec(spec)
            module.__dict__.update(_STAND_INS[name])
            module.__class__ = _NotYetImported
            sys.modules[name] = module
            sys.meta_path.insert(0, _SubmoduleFinder(name))


def _find(name: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(name)
    except ModuleNotFoundError:  # its package is not installed
        return None


class _NotYetImported(ModuleType):
    """A module before its first use. It has the stand-ins, and no other attribute."""

    def __getattr__(self, name: str) -> Any:
        _import(self)
        return getattr(self, name)


def _import(module: ModuleType) -> None:
    """Make the module the real one, in place: whoever has imported it has the real one then."""
    for name in _STAND_INS[module.__name__]:
        del module.__dict__[name]
    module.__class__ = ModuleType
    assert module.__spec__
    assert module.__spec__.loader
    module.__spec__.loader.exec_module(module)


class _SubmoduleFinder(MetaPathFinder):
    """Imports a delayed module before any module in it, such as `torch._dynamo.utils`.

    Args:
        name: The delayed module.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find a module that the import of the delayed one has imported; leave others alone."""
        if not fullname.startswith(f"{self.name}."):
            return None
        sys.meta_path.remove(self)
        if isinstance(sys.modules[self.name], _NotYetImported):
            _import(sys.modules[self.name])
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
        dynamo = sys.modules[DYNAMO]
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


# For each module the attributes that it has before its first use.
_STAND_INS: Mapping[str, Mapping[str, Any]] = {
    DYNAMO: {
        "OptimizedModule": _OptimizedModule,
        "disable": _disable,
        "graph_break": _graph_break,
    },
    "scipy.signal": {"hamming": None},
}
