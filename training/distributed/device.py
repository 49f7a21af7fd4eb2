"""What a model is trained on: CPU or GPUs, and whether they can do what train.precision asks."""

import os
from typing import Literal

import torch

from common.config.loading import ConfigError
from common.config.params import Train
from training.kernels.linear_layers import bf16_supported

Accelerator = Literal["cpu", "gpu"]
RANKS_PER_CPU = 4  # more would take the machine's memory for nothing


def pick_accelerator(params: Train) -> Accelerator:
    """train.accelerator with auto decided: the GPUs if there are any. Raises ConfigError when there are fewer than train.devices."""
    num_gpus, most = torch.cuda.device_count(), RANKS_PER_CPU * (os.cpu_count() or 1)
    if params.accelerator == "cpu" or (params.accelerator == "auto" and not num_gpus):
        if params.devices > most:
            raise ConfigError(
                f"params.yaml: train.devices is {params.devices}, but this machine's CPUs bear no more than {most} ranks"
            )
        return "cpu"
    if not num_gpus:
        raise ConfigError(
            "params.yaml: train.accelerator is gpu, but there is no GPU here that torch can use; set it to auto or cpu"
        )
    if num_gpus < params.devices:
        raise ConfigError(
            f"params.yaml: train.devices is {params.devices}, but there are {num_gpus} GPUs here; lower it, or set train.accelerator to cpu"
        )
    return "gpu"


def check_precision(params: Train, accelerator: Accelerator) -> None:
    """Raises ConfigError where bf16 would be slower than fp32."""
    if params.precision == "bf16" and accelerator == "cpu" and not bf16_supported():
        raise ConfigError(
            "params.yaml: train.precision is bf16, but this CPU has no instructions for it; set it to fp32"
        )
