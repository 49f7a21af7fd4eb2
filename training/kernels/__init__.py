"""Kernels: faster implementations of the model's operators on a CPU.

Each kernel has a plain PyTorch implementation that computes the same, up to the order of additions.
The classes of `models` and `optim` choose between the two by device, dtype and what the machine
has.

`embedding_ops` and `cpp_layers` call C++ that `compiler` compiles once per machine; `linear_layers`
chooses between that and oneDNN. `memory_hints` asks the operating system for better memory.
"""
