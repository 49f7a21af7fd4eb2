"""The results as Markdown tables: a line per contender, a column per batch size and dim."""

from typing import Any

from speed.work import Work

Measured = dict[str, dict[str, Any]]  # by contender
Results = list[tuple[Work, Measured]]


def print_tables(
    results: Results, names: list[str], peaks: dict[str, float], bandwidth: float
) -> None:
    """Print the tables.

    Args:
        results: The figures of each contender, for each work.
        names: The order of the lines.
        peaks: FLOP/s of the fastest matrix product, by precision.
        bandwidth: Bytes per second of a large copy.
    """
    widths = {work.dim for work, _ in results}
    heads = [
        f"B={work.batch_size:,}" + (f", D={work.dim}" if len(widths) > 1 else "")
        for work, _ in results
    ]
    names = [name for name in names if all(name in measured for _, measured in results)]
    _print_table(
        "rows/s",
        {name: [_speed(name, measured) for _, measured in results] for name in names},
        heads,
    )
    _print_table(
        "share of what the machine can do", _shares(results, names, peaks, bandwidth), heads
    )
    cost = {
        name: [
            f"{m[name]['to_first_step_s']:.1f} s; {m[name]['peak_mib']:,} MiB" for _, m in results
        ]
        for name in names
    }
    _print_table("process start to first step done; peak RSS", cost, heads)


def _speed(name: str, measured: Measured) -> str:
    """Return the rows per second, and their ratio to the first contender of the same rounds."""
    one = measured[name]
    ratio = f" ({one['ratio']:.2f} x)" if name != one["beside"] else ""
    return f"{one['rows_per_s']:,.0f}{ratio}"


def _shares(
    results: Results, names: list[str], peaks: dict[str, float], bandwidth: float
) -> dict[str, list[str]]:
    lines = {}
    for name in names:
        precision = name.rsplit(" ", 1)[-1]
        rates = [(work, measured[name]["rows_per_s"]) for work, measured in results]
        if name.startswith("our step") and precision in peaks:
            flops = [rate * work.flop_per_row for work, rate in rates]
            lines[f"{name}: matrix products"] = [
                f"{flop / 1e9:,.0f} GFLOP/s, {flop / peaks[precision]:.0%}" for flop in flops
            ]
            moved = [rate * work.table_bytes_per_row for work, rate in rates]
            lines[f"{name}: table rows moved"] = [
                f"{bytes_ / 1e9:,.1f} GB/s, {bytes_ / bandwidth:.0%}" for bytes_ in moved
            ]
        if name.startswith("our loop") and "our loader" in names:
            loaded = [measured["our loader"]["rows_per_s"] for _, measured in results]
            lines[f"our loader: times {name}"] = [
                f"{rows / rate:.1f} x" for rows, (_, rate) in zip(loaded, rates, strict=True)
            ]
    return lines


def _print_table(title: str, lines: dict[str, list[str]], heads: list[str]) -> None:
    if lines:
        print(f"\n| {title} | " + " | ".join(heads) + " |\n" + "|---" * (len(heads) + 1) + "|")
        print("\n".join(f"| {name} | " + " | ".join(cells) + " |" for name, cells in lines.items()))
