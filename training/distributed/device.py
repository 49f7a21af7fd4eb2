"""The choice of the devices that a model is trained on, and what they can do."""

import os
from typing import Literal

import torch

from common.config.loading import ConfigError
from common.config.params import Train
from training.kernels.choice import bf16_supported

Accelerator = Literal["cpu", "gpu"]
MAX_RANKS_PER_CPU_CORE = 4  # more ranks would only take memory


def pick_accelerator(params: Train) -> Accelerator:
    """Decide `train.accelerator: auto`: the GPUs if there are any, else the CPU.

    Raises:
        ConfigError: There are fewer devices than train.devices asks for.
    """
    num_gpus = torch.cuda.device_count()
    if params.accelerator == "cpu" or (params.accelerator == "auto" and not num_gpus):
        max_ranks = MAX_RANKS_PER_CPU_CORE * (os.cpu_count() or 1)
        if params.devices > max_ranks:
            raise ConfigError(
                f"params.yaml: train.devices is {params.devices}, but the CPUs of this machine can"
                f" run {max_ranks} ranks at most; lower it"
            )
        return "cpu"
    if not num_gpus:
        raise ConfigError(
            "params.yaml: train.accelerator is gpu, but there is no GPU here that torch can use;"
            " set it to auto or cpu"
        )
    if num_gpus < params.devices:
        raise ConfigError(
            f"params.yaml: train.devices is {params.devices}, but there are {num_gpus} GPUs here;"
            " lower it, or set train.accelerator to cpu"
        )
    return "gpu"


def check_precision(params: Train, accelerator: Accelerator) -> None:
    """Check that bf16 is not slower than fp32 here.

    Raises:
        ConfigError: `train.precision` is bf16, and the CPU has no instructions for it.
    """
    if params.precision == "bf16" and accelerator == "cpu" and not bf16_supported():
        raise ConfigError(
            "params.yaml: train.precision is bf16, but this CPU has no instructions for it;"
            " set it to fp32"
        )
