"""The rows of sharded tables in a checkpoint are written in their own order."""

from pathlib import Path

import pytest
import torch

from common.files import DataError
from tests.factories.models import small_params
from training.distributed.sharding.row_permutation import positions_of, stride_of
from training.distributed.sharding.saved_rows import in_order, whole_tables
from training.distributed.sharding.table_files import blocks_in, write_blocks
from training.models import embedding_tables
from training.models.factory import build_model
from training.servers.row_placement import blocks_of

DIM = 3


def permuted(k: int, rows: torch.Tensor) -> torch.Tensor:
    """Return the rows of table number k at their positions."""
    at_positions = torch.empty_like(rows)
    positions = positions_of(torch.arange(len(rows)), k, len(rows), stride_of(len(rows)))
    at_positions[positions] = rows
    return at_positions


def write(directory: Path, tables: list[torch.Tensor], num_servers: int, kind: str) -> None:
    """Write tables as servers do."""
    directory.mkdir(exist_ok=True)
    for server in range(num_servers):
        blocks = {}
        for k, rows in enumerate(tables):
            block = blocks_of([len(rows)], server, num_servers)[0]
            blocks[f"0.{k}.{kind}"] = (block.start, permuted(k, rows)[block])
        write_blocks(directory, server, blocks)


@pytest.mark.parametrize("num_servers", [1, 2, 5])
@pytest.mark.parametrize("bytes_at_once", [1, 300, 1 << 20])
def test_rows_are_in_their_own_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_servers: int, bytes_at_once: int
) -> None:
    monkeypatch.setattr(embedding_tables, "BLOCK_BYTES", bytes_at_once)
    sizes = [1, 2, 7, 64, 100, 233]
    tables = [torch.rand(num_rows, DIM) for num_rows in sizes]
    write(tmp_path / "tables", tables, num_servers, "weight")
    saved = blocks_in(tmp_path / "tables")
    for k, rows in enumerate(tables):
        blocks = list(in_order(k, saved[f"0.{k}.weight"], len(rows), DIM, tmp_path))
        assert max(map(len, blocks)) <= max(1, bytes_at_once // (4 * DIM))
        assert torch.equal(torch.cat(blocks), rows)
    assert [path.name for path in tmp_path.iterdir()] == ["tables"]


def test_missing_rows_are_named(tmp_path: Path) -> None:
    params = small_params(tmp_path / "log.tsv", embedding_dim=DIM).model
    model = build_model(params, [9, 40], 5, torch.Generator())
    folder = tmp_path / "tables"
    write(folder, [torch.rand(9, DIM), torch.rand(40, DIM)], 3, "weight")
    assert whole_tables(folder, model, tmp_path)["embeddings.tables.0.weight"].shape == (49, DIM)
    next(folder.glob("shard-00002-model-00002-*")).unlink()
    with pytest.raises(DataError, match=r"rows of 0\.1\.weight are missing"):
        whole_tables(folder, model, tmp_path)
    model = build_model(params, [9, 40, 5], 5, torch.Generator())
    write(folder, [torch.rand(9, DIM), torch.rand(40, DIM)], 3, "weight")
    with pytest.raises(DataError, match=r"rows of 0\.2\.weight are missing"):
        whole_tables(folder, model, tmp_path)
