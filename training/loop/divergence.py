"""What is left of a run whose loss is no longer a number."""

from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import save_file

from common.config.loading import ConfigError
from common.files import replaced
from training.loop.datamodule import FeatureData

if TYPE_CHECKING:
    from training.loop.lightning_module import TrainDLRM

DIVERGED = Path("runs/diverged")


def diverged(module: "TrainDLRM", what: str, step: int) -> ConfigError:
    """The error to raise for `what` was found after `step` (from 1) steps. Collective: every rank calls it.

    The first rank writes runs/diverged/batch.safetensors, the rows of that step (dense, ids, labels), and state.safetensors, the
    weights and the optimizers' state as they are: before the step where each loss is looked at (alone on a CPU), else at most
    Plan.record_every steps after it.
    """
    trainer = module.trainer
    if trainer.is_global_zero:
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, FeatureData)
        state = module.state()
        optimizer = {
            f"optimizer.{k}.{name}": value
            for k, values in state["optimizer"]["state"].items()
            for name, value in values.items()
        }
        with replaced(module.root / DIVERGED) as scratch:
            scratch.mkdir()
            save_file(data.batch_of(step - 1).rows._asdict(), scratch / "batch.safetensors")
            # by address: an average of the model shares its tables
            weights = {
                value.data_ptr(): (name, value)
                for name, value in reversed(state["weights"].items())
            }
            tensors = {
                name: value.detach().cpu().contiguous()
                for name, value in [*weights.values(), *optimizer.items()]
            }
            save_file(tensors, scratch / "state.safetensors", {"step": str(module.step)})
    trainer.strategy.barrier("diverged")
    return ConfigError(
        f"training diverged: {what} at step {step} of {module.plan.num_steps}, with params.yaml:"
        f" train.dense_optimizer.lr {module.params.dense_optimizer.lr} and train.embedding_optimizer.lr {module.params.embedding_optimizer.lr};"
        f" lower them, raise train.warmup_steps or set train.max_grad_norm; the step's rows and the weights as of"
        f" step {module.step} are in {DIVERGED}"
    )
