"""FuxiCTR's own DLRM from a checkout. Its embedding gradients are as large as the tables."""

import json
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from speed.ours import RepeatedBatches
from speed.rounds import Windows
from speed.work import BOTTOM_MLP, LR, TOP_MLP, Work

MODEL = Path("model_zoo/DLRM/src")
NEEDS = ("h5py", "keras_preprocessing")  # FuxiCTR imports them
LABEL = "label_"  # a name that no feature of the schema has


def why_absent(work: Work) -> str | None:
    """Return the reason why this contender cannot run, or None."""
    missing = [name for name in NEEDS if find_spec(name) is None]
    if missing:
        return f"{' and '.join(missing)} not installed"
    return None if work.fuxictr else "no checkout given (--fuxictr)"


def step(work: Work, windows: Windows) -> None:
    """Run BaseModel.train_step on batches that are made before.

    It does zero_grad, forward pass, BCE, backward pass, gradient clipping and torch.optim.SGD.
    """
    assert work.fuxictr is not None
    sys.dont_write_bytecode = True
    sys.path[:0] = [work.fuxictr, str(Path(work.fuxictr) / MODEL)]
    from DLRM import DLRM
    from fuxictr.features import FeatureMap

    with tempfile.TemporaryDirectory(dir=work.root) as scratch:
        feature_map = FeatureMap("rows", scratch)
        (Path(scratch) / "feature_map.json").write_text(json.dumps(_features(work)))
        feature_map.load(str(Path(scratch) / "feature_map.json"), {"embedding_dim": work.dim})
        options = {
            "optimizer": "SGD",
            "loss": "binary_crossentropy",
            "metrics": [],
            "model_root": scratch,
            "verbose": 0,
        }
        model = DLRM(
            feature_map,
            learning_rate=LR,
            embedding_dim=work.dim,
            bottom_mlp_units=list(BOTTOM_MLP),
            top_mlp_units=list(TOP_MLP),
            **options,
        )
    model._max_gradient_norm = 10.0  # the default of its fit()
    model.train()
    batches = [_convert_batch(work, batch.rows) for batch in RepeatedBatches(work).batches]
    while True:
        for batch in batches:
            model.train_step(batch)
            windows.tick()


def _features(work: Work) -> dict[str, Any]:
    numeric = [{name: {"type": "numeric", "source": ""}} for name in work.schema.dense_features]
    categorical = [
        {name: {"type": "categorical", "source": "", "vocab_size": rows, "padding_idx": None}}
        for name, rows in zip(work.schema.categorical_features, work.cardinalities, strict=True)
    ]
    return {"dataset_id": "rows", "labels": [LABEL], "features": numeric + categorical}


def _convert_batch(work: Work, rows: Any) -> dict[str, Any]:
    dense = {name: rows.dense[:, [k]] for k, name in enumerate(work.schema.dense_features)}
    ids = {name: rows.ids[:, k].long() for k, name in enumerate(work.schema.categorical_features)}
    return {**dense, **ids, LABEL: rows.labels}
