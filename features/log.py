"""A log file as typed rows, block by block, whatever its format."""

from collections.abc import Iterator
from pathlib import Path

from features.files import DataError
from features.lines import Block, read_blocks
from features.parse import Parsed, parse_block
from features.schema import Schema


def read_log(path: Path, schema: Schema, *, labelled: bool, short_rows: str) -> Iterator[tuple[Block, Parsed]]:
    """A log file block by block. Raises DataError when not one of the first block's lines fits the schema."""
    for block in read_blocks(path):
        if schema.format.header and block.first_line == 1:
            block = _without_header(block, schema.columns_of(labelled), schema.format.separator, path)
        parsed = parse_block(block, schema, labelled=labelled, fill_short_rows=short_rows == "fill")
        if block.first_line <= 2 and parsed.rows.is_empty() and block.num_lines:
            first = parsed.bad.row(0, named=True)
            fault = f"line {first['line']}: {first['reason']}"
            raise DataError(f"{path}: none of its first {block.num_lines:,} lines can be read; {fault}. Is data.schema right?")
        yield block, parsed


def _without_header(block: Block, expected: list[str], separator: str, path: Path) -> Block:
    header, _, text = block.text.partition(b"\n")
    names = header.decode("utf-8", "replace").split(separator)
    if names != expected:
        raise DataError(f"{path}: line 1: header {names} found, {expected} expected by the schema")
    return Block(text, 2, block.num_lines - 1, block.read_bytes)
