"""Embedding tables that store few bits for a number, and may leave out rows.

Rows are decoded when they are looked up, so the tables stay small in memory. A row that is left out
has the vector of its table's substitute row. Which rows are kept is one bit for each row of the
model. The place of a kept row is the number of kept rows before it: a sum that is known for every
byte of these bits, plus the bits before it in its byte.

Shapes: B batch, F tables, R rows of all tables, K rows that are kept, C codes of a row, D embedding
dim, V values of a read.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from common.numbers import ceil_div
from training.kernels.read import Read
from training.models.embedding_tables import Tables, moved_blocks
from training.models.number_formats import (
    CODE_DTYPE,
    Encoded,
    Format,
    codes_per_row,
    decode,
    encode,
    fault_in,
    has_scale,
)
from training.models.reads import Reads, vectors_of

BITS_OF_BYTE = 8
BITS = 1 << torch.arange(BITS_OF_BYTE, dtype=torch.int32)
NUM_BITS_OF_BYTE = torch.tensor([number.bit_count() for number in range(256)], dtype=torch.int32)


class CompressedTables(Tables):
    """Tables of which some rows are stored, in a format of few bits. They cannot be trained.

    Args:
        cardinalities: Number of rows of each table, with those that are left out.
        embedding_dim: D.
        bits: The format of the numbers (number_formats.py).
        num_kept: K; None if all rows are kept.

    Attributes:
        codes: The kept rows, followed by the substitute row of each table, (K + F, C); or all rows,
            (R, C).
        scale: The scale of each stored row, bfloat16; None if the format has none.
        kept: Bit i of byte j says whether row 8 j + i is kept, (ceil(R / 8),) uint8; None if all
            are.
    """

    kept: Tensor | None
    scale: Tensor | None

    def __init__(
        self,
        cardinalities: Sequence[int],
        embedding_dim: int,
        *,
        bits: Format,
        num_kept: int | None = None,
    ) -> None:
        super().__init__(cardinalities, embedding_dim, torch.Generator())
        self.bits, self.num_kept = bits, num_kept
        num_stored = self.num_rows if num_kept is None else num_kept + len(cardinalities)
        codes = torch.empty(num_stored, codes_per_row(embedding_dim, bits), dtype=CODE_DTYPE[bits])
        self.codes = nn.Parameter(codes, requires_grad=False)
        scale = torch.empty(num_stored, dtype=torch.bfloat16) if has_scale(bits) else None
        self.register_buffer("scale", scale)
        num_bytes = ceil_div(self.num_rows, BITS_OF_BYTE)
        kept = None if num_kept is None else torch.zeros(num_bytes, dtype=torch.uint8)
        self.register_buffer("kept", kept)
        # the number of kept rows before those of each byte, (ceil(R / 8),) int32
        self.register_buffer("kept_before", None, persistent=False)

    @torch.no_grad()
    def store(
        self,
        rows_RD: Tensor,
        is_kept_R: Tensor | None = None,
        substitutes_FD: Tensor | None = None,
    ) -> None:
        """Encode rows.

        Args:
            rows_RD: All rows, float32.
            is_kept_R: Which rows are kept, bool; K of them. None if all are.
            substitutes_FD: The row of each table that takes the place of those that are left out,
                if some are.
        """
        place = 0
        for first, rows in moved_blocks(rows_RD):
            kept = rows if is_kept_R is None else rows[is_kept_R[first : first + len(rows)]]
            place = self._store_at(place, kept)
        if is_kept_R is not None:
            assert self.kept is not None
            assert substitutes_FD is not None
            place = self._store_at(place, substitutes_FD)
            self.kept.copy_(_packed(is_kept_R))
        assert place == len(self.codes)
        self.make_index()

    def _store_at(self, place: int, rows_KD: Tensor) -> int:
        """Encode rows from a place of `codes` on; returns the place after them."""
        end = place + len(rows_KD)
        codes, scale = encode(rows_KD, self.bits)
        self.codes[place:end] = codes
        if self.scale is not None and scale is not None:
            self.scale[place:end] = scale
        return end

    def make_index(self) -> None:
        """Count the kept rows before each byte of `kept`, after it has changed."""
        if self.kept is not None:
            in_byte = NUM_BITS_OF_BYTE[self.kept.int()]
            self.kept_before = (in_byte.cumsum(0) - in_byte).int()

    def fault(self) -> str | None:
        """Return what is wrong with the stored rows that `store` cannot have written, or None."""
        if self.kept is not None:
            num_kept = int(NUM_BITS_OF_BYTE[self.kept.int()].sum())
            last = self.num_rows % BITS_OF_BYTE
            if num_kept != self.num_kept or (last and int(self.kept[-1]) >> last):
                return f"{num_kept:,} rows are kept, {self.num_kept:,} expected"
        for first, codes in moved_blocks(self.codes):
            scale = None if self.scale is None else self.scale[first : first + len(codes)]
            if found := fault_in(Encoded(codes, scale), self.embedding_dim):
                return found
        return None

    @property
    def num_parameters(self) -> int:
        return len(self.codes) * self.embedding_dim

    @property
    def bytes_of_row(self) -> int:
        parts = [self.codes[:1], *(part[:1] for part in (self.scale,) if part is not None)]
        if self.kept is not None:
            parts += [self.kept[:1], torch.empty(1, dtype=torch.int32)]
        return sum(part.nbytes for part in parts)

    def forward(self, ids_BF: Tensor) -> Tensor:
        tables_F = torch.arange(len(self.spans), device=ids_BF.device)
        rows = self.row_numbers(ids_BF), tables_F.expand(ids_BF.shape)
        return self._decoded(*rows)

    def read(self, reads: Reads) -> list[Tensor]:
        columns = [vectors_of(self._rows(read), read) for read in reads.columns]
        empty = torch.empty(reads.num_rows, 0, self.embedding_dim)
        columns_BKD = torch.stack(columns, dim=1) if columns else empty
        return [columns_BKD, *(self._rows(read) for read in reads.lists)]

    def _rows(self, read: Read) -> Tensor:
        """Return the row of each value of a read, (V, D), float32."""
        rows_V = self.row_numbers_of(read)
        return self._decoded(rows_V, torch.tensor(read.table).expand(rows_V.shape))

    def _decoded(self, rows: Tensor, tables: Tensor) -> Tensor:
        """Look up and decode rows.

        Args:
            rows: Rows of the concatenation of all tables, int64, of any shape.
            tables: The table of each.

        Returns:
            The rows, float32, of the same shape and D.
        """
        places = self._places(rows, tables).flatten()
        codes = self.codes.index_select(0, places)
        scale = None if self.scale is None else self.scale.index_select(0, places)
        return decode(Encoded(codes, scale), self.embedding_dim).view(
            *rows.shape, self.embedding_dim
        )

    def _places(self, rows: Tensor, tables: Tensor) -> Tensor:
        """Return where rows, or their substitutes, are in `codes`."""
        if self.kept is None:
            return rows
        assert self.num_kept is not None
        byte, bit = rows >> 3, _taken(BITS, rows & 7)
        kept = _taken(self.kept, byte).int()
        is_kept = kept & bit
        before_in_byte = _taken(NUM_BITS_OF_BYTE, kept & (bit - 1))
        places = _taken(self.kept_before, byte) + before_in_byte
        return torch.where(is_kept.bool(), places, self.num_kept + tables)


def _taken(values: Tensor, index: Tensor) -> Tensor:
    """Return values[index]. As `index_select`, an exported model has one fast operator for it."""
    return values.index_select(0, index.flatten()).view(index.shape)


def _packed(is_true_R: Tensor) -> Tensor:
    """Pack booleans into bytes, the first into the lowest bit, (ceil(R / 8),) uint8."""
    num_missing = -len(is_true_R) % BITS_OF_BYTE
    bits = torch.nn.functional.pad(is_true_R.to(torch.uint8), (0, num_missing)).view(-1, 8)
    return (bits << torch.arange(BITS_OF_BYTE, dtype=torch.uint8)).sum(dim=1, dtype=torch.uint8)
