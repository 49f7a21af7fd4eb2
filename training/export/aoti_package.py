"""The model as an AOTInductor package, for programs that have PyTorch.

It is machine code for this CPU and this version of PyTorch, made by a C++ compiler. Its bytes
depend on paths of this machine, so two exports differ.
"""

import warnings
from pathlib import Path

import torch
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler
from torch.export import ExportedProgram

from common.config.loading import ConfigError
from serving.serving_bundle import PACKAGE_FILE

# The threads are those of the program that loads it, not those of this one.
OPTIONS = {"cpp.dynamic_threads": True}


def write_package(program: ExportedProgram, directory: Path) -> None:
    """Write model.pt2.

    Args:
        program: The model (training/export/traced_model.py).
        directory: The folder.

    Raises:
        ConfigError: There is no C++ compiler.
    """
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        raise ConfigError(
            "export.runtime aoti needs a C++ compiler, and there is none that works; install g++,"
            " set CXX to another one, or set export.runtime to onnx in params.yaml"
        ) from None
    path = str(directory.absolute() / PACKAGE_FILE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch._inductor.aoti_compile_and_package(
            program, package_path=path, inductor_configs=OPTIONS
        )
