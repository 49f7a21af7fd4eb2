"""The loss of a training step and its gradients.

Shapes: B this process's rows of a batch, N dense columns.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from common.config.params import Params, Train
from training.distributed.collectives import concatenate, share, sum_over_ranks
from training.loop.batches import Batch
from training.loop.losses import Loss, logloss, make_loss, of_soft_labels, soft_labels
from training.loop.training_curves import RunningMetrics
from training.models.dlrm import DLRM
from training.models.reads import Reads


class StepLoss:
    """The mean loss of a step's rows, of which `backward` computes the gradients.

    Args:
        model: The model that learns.
        loss: The loss that is minimised; with distillation it takes soft labels.
        params: The section `train` of params.yaml.
        metrics: The metrics that the rows are added to.
    """

    def __init__(self, model: DLRM, loss: Loss, params: Train, metrics: RunningMetrics) -> None:
        self.model, self.loss, self.params, self.metrics = model, loss, params, metrics

    def backward(
        self,
        batch: Batch,
        selections: Sequence[Tensor | Reads],
        num_ranks: int = 1,
        last_backward: Callable[[Tensor], None] = Tensor.backward,
        check: Callable[[Tensor], None] = lambda loss_sum: None,
    ) -> list[Tensor]:
        """Compute the gradients of the mean loss of the global batch.

        A batch has the rows of a whole step. They are processed in `accumulate_grad_batches` parts,
        so that the activations take the memory of one part. The dense layers' gradients are left in
        their `.grad`.

        Args:
            batch: This rank's share of the global batch.
            selections: What `Embeddings.selections` returned for it.
            num_ranks: The number of ranks, over which the dense layers' gradients are averaged.
            last_backward: Computes the gradients of the last part.
            check: Is called with the loss of each part, before its gradients are computed.

        Returns:
            The gradients of what was looked up. The loss is that of this rank's rows times
            `num_ranks`, divided by the weight of the global batch.
        """
        rows = self.model.embeddings.lookup(selections)
        scale = num_ranks / total_weight(batch)
        num_parts = self.params.accumulate_grad_batches
        parts = []
        for k in range(num_parts):
            part = share(len(batch.rows.labels), k, num_parts)
            leaves, loss_sum = self._loss_of_part(batch, rows, part)
            check(loss_sum)
            loss = loss_sum * scale
            if k < num_parts - 1:
                loss.backward()  # type: ignore[no-untyped-call]
            else:
                last_backward(loss)
            # Without columns, or without values in any list, a tensor of rows is empty and not
            # used.
            parts.append(
                [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
            )
        return [concatenate(of_tables) for of_tables in zip(*parts, strict=True)]

    def _loss_of_part(
        self, batch: Batch, rows: list[Tensor], part: slice
    ) -> tuple[list[Tensor], Tensor]:
        """Return the rows that were looked up, as leaves of the graph, and the sum of losses."""
        dense_BN, _, labels_B, bags, weights_B, scores_B = batch.rows.part(part.start, part.stop)
        of_part = self.model.embeddings.part(rows, batch.rows.bags, part)
        leaves = [rows_k.detach().requires_grad_() for rows_k in of_part]
        logits_B = self.model.logits(dense_BN, leaves, bags)
        targets_B = labels_B
        if scores_B is not None and self.params.distill:
            targets_B = soft_labels(labels_B, scores_B, self.params.distill.weight)
        loss_sum = self.loss(logits_B, targets_B, weights_B)
        logloss_sum = loss_sum
        if self.loss is not logloss or targets_B is not labels_B:
            logloss_sum = logloss(logits_B.detach(), labels_B, weights_B)
        self.metrics.update(logloss_sum, logits_B, labels_B, weights_B)
        return leaves, loss_sum


def loss_to_minimise(params: Params) -> Loss:
    """Return the loss of params.yaml; with distillation it takes soft labels."""
    loss = make_loss(params.model.loss)
    return of_soft_labels(loss) if params.train.distill else loss


def total_weight(batch: Batch) -> float | Tensor:
    """Return what the global batch's sum of losses is divided by. Collective.

    It is the number of rows, or the sum of the sample weights; 1 if that is 0, because the sum of
    losses is then 0 as well.
    """
    if batch.rows.weights is None:
        return batch.num_rows
    total = sum_over_ranks(batch.rows.weights.double().sum())
    return torch.where(total > 0, total, 1.0).float()
