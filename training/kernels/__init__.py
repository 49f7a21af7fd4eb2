"""Kernels: faster implementations of the model's operators on a CPU.

Each kernel has a plain PyTorch implementation that computes the same, up to the order of additions.
`choice` has the rule by which a machine picks one of them.

`embedding_ops` and `cpp_layers` call C++ that `compiler` compiles once per machine; `linear_layers`
calls that or oneDNN. `memory_hints` asks the operating system for better memory.
"""
