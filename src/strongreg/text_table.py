"""Tables as text, for people."""

from __future__ import annotations

from collections.abc import Sequence


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]], total: Sequence[str], *, num_left: int) -> str:
    """A table with a rule below its header and above its total.

    Args:
        header: names of the columns.
        rows: one cell per column.
        total: the last row.
        num_left: columns, from the first, that are set flush left; the others are flush right.

    Returns:
        Lines of text.
    """
    table = [header, *rows, total]
    widths = [max(len(row[i]) for row in table) for i in range(len(header))]
    lines = [
        "  ".join(
            cell.ljust(width) if i < num_left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in table
    ]
    rule = "-" * len(lines[0])
    return "\n".join(line.rstrip() for line in (lines[0], rule, *lines[1:-1], rule, lines[-1]))
