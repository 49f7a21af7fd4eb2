"""TorchRec's own DLRM in one process.

Its FusedEmbeddingBagCollection uses FBGEMM's kernels, which do the SGD step in the backward pass.
"""

from importlib.util import find_spec

import torch
from speed.ours import RepeatedBatches
from speed.rounds import Windows
from speed.work import BOTTOM_MLP, LR, TOP_MLP, Work


def why_absent(work: Work) -> str | None:
    """Return the reason why this contender cannot run, or None."""
    if find_spec("torchrec") and find_spec("fbgemm_gpu"):
        return None
    return "torchrec and fbgemm_gpu not installed"


def step(work: Work, windows: Windows) -> None:
    """Train DLRMTrain on batches that are made before.

    A step is forward pass, BCE, backward pass and torch.optim.SGD for the dense layers.
    """
    from torchrec.datasets.utils import Batch
    from torchrec.models.dlrm import DLRM, DLRMTrain
    from torchrec.modules.embedding_configs import EmbeddingBagConfig
    from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

    names = work.schema.categorical_features
    configs = [
        EmbeddingBagConfig(
            num_embeddings=rows, embedding_dim=work.dim, name=f"table_{name}", feature_names=[name]
        )
        for name, rows in zip(names, work.cardinalities, strict=True)
    ]
    device = torch.device(work.device)
    tables = FusedEmbeddingBagCollection(configs, torch.optim.SGD, {"lr": LR}, device=device)
    num_dense = len(work.schema.dense_features)
    model = DLRMTrain(
        DLRM(tables, num_dense, [*BOTTOM_MLP, work.dim], [*TOP_MLP, 1], dense_device=device)
    )
    table_weights = {id(weight) for weight in tables.parameters()}
    optimizer = torch.optim.SGD(
        [weight for weight in model.parameters() if id(weight) not in table_weights], lr=LR
    )
    batches = []
    for (dense_BN, ids_BF, labels_B, *_), num_rows in RepeatedBatches(work).batches:
        ids = ids_BF.T.flatten().to(torch.int64)
        lengths = torch.ones(num_rows * len(names), dtype=torch.int32, device=device)
        batches.append(Batch(dense_BN, KeyedJaggedTensor(names, ids, lengths=lengths), labels_B))
    while True:
        for batch in batches:
            loss, _ = model(batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            windows.tick()
