"""Faster implementations behind the model's own classes. Each has a plain PyTorch twin, which is complete and tested; the choice is
made by device, dtype and what the machine has, and never changes what is computed but for the order of additions."""
