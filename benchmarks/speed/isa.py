"""Emulation of a CPU with fewer instructions, for both sides of a comparison."""

import os
import re
import subprocess
import sys

# Environment variables that limit the instructions of torch, and of oneDNN and MKL inside it.
ENVIRONMENTS: dict[str, dict[str, str]] = {
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    },
    "avx512": {},
}
PROBE = """
import torch
print("torch", torch.backends.cpu.get_cpu_capability(), flush=True)
a = torch.randn(256, 256)
torch.mm(a, a)
torch.ops.mkldnn._linear_pointwise(a, a, None, "none", [], "")
"""


def restart_with(isa: str | None) -> None:
    """Start this script again with the environment of an instruction set, unless it has it.

    Libraries read the environment when they are loaded, so it must be set before torch is imported.

    Args:
        isa: A key of ENVIRONMENTS; None for all instructions of this CPU.
    """
    environment = ENVIRONMENTS.get(isa or "", {})
    if any(os.environ.get(name) != value for name, value in environment.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | environment)  # noqa: S606


def instructions() -> str:
    """Return the instructions that torch, oneDNN and MKL really use in this environment."""
    output = subprocess.run(
        [sys.executable, "-c", PROBE],
        env=os.environ | {"ONEDNN_VERBOSE": "1", "MKL_VERBOSE": "1"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    found = [line for line in output.splitlines() if line.startswith("torch ")]
    for library, pattern in (
        ("oneDNN", r"info,cpu,isa:(.*)"),
        ("MKL", r"MKL_VERBOSE .*for (.*?),"),
    ):
        match = re.search(pattern, output)
        found.append(f"{library} {match[1] if match else 'unknown'}")
    return "; ".join(found)


def check(isa: str | None) -> None:
    """Exit if torch does not use the instruction set that was asked for."""
    import torch

    capability = torch.backends.cpu.get_cpu_capability().lower()
    if isa and capability != isa:
        sys.exit(f"--isa {isa}: torch uses {capability} on this CPU")
