"""Base class of embeddings whose categorical features need rows of different shapes.

Shapes: B batch, F categorical features, K features of one group, D embedding dim.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from training.models.embeddings import Embeddings, Place


class GroupedEmbeddings(Embeddings):
    """Embeddings in groups: the features of a group have rows of one shape and share one `Tables`.

    Args:
        groups: The columns of each group. A column is in one group, or in none if the model leaves
            it out; no group is empty.
    """

    def __init__(self, groups: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.num_groups = len(groups)
        for k, columns in enumerate(groups):
            self.register_buffer(f"columns_{k}", torch.tensor(columns), persistent=False)
        grouped_columns = [column for columns in groups for column in columns]
        self.num_tables = len(grouped_columns)
        # positions[k]: where the k-th column that is not left out is in all groups together
        self.place_of = {
            column: Place(group, number)
            for group, columns in enumerate(groups)
            for number, column in enumerate(columns)
        }
        self.positions = sorted(range(len(grouped_columns)), key=grouped_columns.__getitem__)

    def places(self, table: int) -> list[Place]:
        return [self.place_of[table]] if table in self.place_of else []

    def split_columns(self, ids_BF: Tensor) -> list[Tensor]:
        """Return the ids (B, K) of each group."""
        return [
            ids_BF.index_select(1, self.get_buffer(f"columns_{k}")) for k in range(self.num_groups)
        ]

    def merge_columns(self, vectors: Sequence[Tensor]) -> Tensor:
        """Undo `split_columns`: from the vectors (B, K, D) of each group to (B, F, D).

        It uses unbind and stack, because the gradients of these are stack and unbind. The gradient
        of index_select adds into zeros and takes ten times as long.
        """
        columns = [vectors_BD for vectors_BKD in vectors for vectors_BD in vectors_BKD.unbind(1)]
        return torch.stack([columns[position] for position in self.positions], dim=1)
