"""Diverged runs: the exception, and the message."""

from pathlib import Path

from common.config.loading import ConfigError
from common.config.params import Train

DIVERGED = Path("runs/diverged")


class Diverged(Exception):  # noqa: N818
    """A loss or a weight of the run is NaN or infinite.

    Every rank raises it at the same point, except where a single CPU checks each loss.

    Attributes:
        step: The step, from 1, whose loss or weights are not finite.
        what: What was found, for a message.
    """

    def __init__(self, step: int, what: str) -> None:
        super().__init__(f"{what} at step {step}")
        self.step, self.what = step, what

    def __reduce__(self) -> tuple[type["Diverged"], tuple[int, str]]:
        """Let the exception be sent from a worker to the driver."""
        return Diverged, (self.step, self.what)

    def as_config_error(self, params: Train, num_steps: int, steps_done: int) -> ConfigError:
        """Make the error that the user sees.

        Args:
            params: The section `train` of params.yaml.
            num_steps: The number of steps of the run.
            steps_done: The number of steps in the weights that DivergenceDump has written.
        """
        return ConfigError(
            f"training diverged: {self.what} at step {self.step} of {num_steps}, with params.yaml:"
            f" train.dense_optimizer.lr {params.dense_optimizer.lr} and"
            f" train.embedding_optimizer.lr {params.embedding_optimizer.lr}; lower them, raise"
            " train.warmup_steps or set train.max_grad_norm; the step's rows and the weights as of"
            f" step {steps_done} are in {DIVERGED}"
        )
