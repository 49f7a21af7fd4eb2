"""Embeddings whose columns are not all alike: those with rows of one shape are a group and share one EmbeddingTables.

Shapes: B batch, F categorical fields, K columns of a group, D embedding dim.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from training.models.embeddings import Embeddings


class GroupedEmbeddings(Embeddings):
    """groups: the columns of each, every column in one of them and none of them empty."""

    def __init__(self, groups: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.num_groups = len(groups)
        for k, columns in enumerate(groups):
            self.register_buffer(f"columns_{k}", torch.tensor(columns), persistent=False)
        grouped = [column for columns in groups for column in columns]
        self.places = sorted(
            range(len(grouped)), key=grouped.__getitem__
        )  # where the first column stands in the groups, the second, ...

    def split(self, ids_BF: Tensor) -> list[Tensor]:
        """(B, K) of each group."""
        return [
            ids_BF.index_select(1, self.get_buffer(f"columns_{k}")) for k in range(self.num_groups)
        ]

    def in_order(self, vectors: Sequence[Tensor]) -> Tensor:
        """(B, K, D) of each group -> (B, F, D), the columns in their order again.

        By unbind and stack, whose gradients are stack and unbind: that of index_select adds into zeros, 10 times as slow.
        """
        columns = [vectors_BD for vectors_BKD in vectors for vectors_BD in vectors_BKD.unbind(1)]
        return torch.stack([columns[place] for place in self.places], dim=1)
