"""Compressed tables give the rows that plain tables of the decoded rows give."""

from collections.abc import Sequence

import pytest
import torch

from training.kernels import choice
from training.kernels.read import POOLINGS, Read
from training.models.compressed_tables import CompressedTables
from training.models.embedding_tables import EmbeddingTables
from training.models.number_formats import Bits, decode, encode
from training.models.reads import Reads

CARDINALITIES, D = [5, 1, 37, 9], 6
R, F = sum(CARDINALITIES), len(CARDINALITIES)
ALL_BITS: list[Bits] = [4, 8, 16, 32]


def round_trip(rows: torch.Tensor, bits: Bits) -> torch.Tensor:
    return decode(encode(rows, bits), D)


def make_tables(
    bits: Bits, share_kept: float | None, seed: int = 1
) -> tuple[CompressedTables, EmbeddingTables]:
    """Make compressed tables, and plain ones with the rows that they shall give."""
    generator = torch.Generator().manual_seed(seed)
    plain = EmbeddingTables(CARDINALITIES, D, generator)
    rows = plain.weight.clone()
    if share_kept is None:
        compressed = CompressedTables(CARDINALITIES, D, bits=bits)
        compressed.store(rows)
    else:
        is_kept = torch.rand(R, generator=generator) < share_kept
        substitutes = torch.rand(F, D, generator=generator)
        compressed = CompressedTables(CARDINALITIES, D, bits=bits, num_kept=int(is_kept.sum()))
        compressed.store(rows, is_kept, substitutes)
        of_table = torch.repeat_interleave(torch.arange(F), torch.tensor(CARDINALITIES))
        rows[~is_kept] = substitutes[of_table[~is_kept]]
    plain.weight.copy_(round_trip(rows, bits))
    assert compressed.fault() is None
    return compressed, plain


def all_ids() -> torch.Tensor:
    """Return every id of the largest table, and each id of the others in turn."""
    return torch.stack([torch.arange(max(CARDINALITIES)) % n for n in CARDINALITIES], dim=1).int()


@pytest.mark.parametrize("share_kept", [None, 0.0, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("bits", ALL_BITS)
def test_every_row_is_that_of_a_plain_table(bits: Bits, share_kept: float | None) -> None:
    compressed, plain = make_tables(bits, share_kept)
    rows = compressed(all_ids())
    assert rows.dtype == torch.float32
    assert torch.equal(rows, plain(all_ids()))
    assert torch.equal(compressed(all_ids().long()), rows)


def reads_of(values: Sequence[torch.Tensor], pooling: str | None) -> Reads:
    """Read a column of one value, a pooled list of each table, and lists that are not pooled."""
    starts = torch.tensor([0, 0, 3, 4])
    weights = torch.tensor([0.5, 2.0, -1.0, 1.0]) if pooling == "sum" else None
    columns = [Read(2, values[2][:3])]
    columns += [Read(k, of_table, starts, weights, pooling) for k, of_table in enumerate(values)]
    return Reads(3, columns, [Read(k, of_table) for k, of_table in enumerate(values)])


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("share_kept", [None, 0.5])
@pytest.mark.parametrize("bits", ALL_BITS)
def test_lists_and_shared_tables_are_read_as_plain_ones(
    bits: Bits, share_kept: float | None, pooling: str
) -> None:
    compressed, plain = make_tables(bits, share_kept)
    values = [torch.tensor([0, n - 1, n // 2, 0], dtype=torch.int32) for n in CARDINALITIES]
    reads = reads_of(values, pooling)
    with choice.forced(choice.Implementations("pytorch", "pytorch")):
        expected = plain.read(reads)
    found = compressed.read(reads)
    assert [tensor.shape for tensor in found] == [tensor.shape for tensor in expected]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)
    assert [tensor.shape for tensor in compressed.read(Reads(3, [], []))] == [(3, 0, D)]


@pytest.mark.parametrize("share_kept", [None, 0.5])
def test_an_id_outside_its_table_is_refused(share_kept: float | None) -> None:
    compressed, _ = make_tables(8, share_kept)
    for value in (-1, CARDINALITIES[1]):
        with pytest.raises(IndexError, match="outside its table 1"):
            compressed.read(Reads(1, [Read(1, torch.tensor([value]))], []))
    with pytest.raises(IndexError):
        compressed(torch.full((1, F), R))


def test_the_stored_bytes_are_few() -> None:
    """Half of the rows of int8: their codes and scales, the substitutes, and a bit for each row."""
    compressed, _ = make_tables(8, 0.5)
    num_kept = compressed.num_kept
    assert num_kept is not None
    stored = sum(tensor.nbytes for tensor in compressed.state_dict().values())
    assert stored == (num_kept + F) * (D + 2) + -(-R // 8)


@pytest.mark.parametrize("change", ["one bit more", "one bit less", "a bit behind the last row"])
def test_other_kept_rows_are_found(change: str) -> None:
    compressed, _ = make_tables(8, 0.5)
    assert compressed.kept is not None
    bits = [(row, bool(compressed.kept[row // 8] >> (row % 8) & 1)) for row in range(R)]
    row = {
        "one bit more": next(row for row, is_kept in bits if not is_kept),
        "one bit less": next(row for row, is_kept in bits if is_kept),
        "a bit behind the last row": R,
    }[change]
    compressed.kept[row // 8] ^= 1 << (row % 8)
    assert "rows are kept" in str(compressed.fault())
