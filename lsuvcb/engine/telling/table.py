"""Tables: rows of cells as text that fits a terminal, and as HTML for a notebook."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from html import escape

WIDTH = 100


def number(value: float | None) -> str:
    """Three digits that fit a column: 0.58, 12.3, 4.1e-05; a dash for what was not measured."""
    if value is None:
        return "-"
    if value == 0 or not math.isfinite(value) or 1e-3 <= abs(value) < 1e4:
        return f"{value:.3g}" if abs(value) < 1000 or not math.isfinite(value) else f"{value:.0f}"
    return f"{value:.1e}"


def shorten(path: str, width: int) -> str:
    """A dotted path in at most `width` characters: its first parts shrink to a letter and a number, its last ones stay.

    >>> shorten("encoder.layers.encoder_layer_10.mlp.0", 20)
    'e.l.e10.mlp.0'
    """
    parts = path.split(".")
    for i, part in enumerate(parts[:-1]):
        if len(".".join(parts)) <= width:
            break
        parts[i] = part if part.isdigit() else part[:1] + part[len(part.rstrip("0123456789")) :]
    short = ".".join(parts)
    return short if len(short) <= width else "…" + short[len(short) - width + 1 :]


def table(rows: Sequence[Sequence[str]], left: Iterable[int]) -> list[str]:
    """Rows as aligned columns, the first row the head; the columns in `left` flush left, the others right.

    The first column gives way where a line would be longer than WIDTH.
    """
    left = set(left)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    widths[0] = min(widths[0], WIDTH - sum(widths[1:]) - 2 * (len(widths) - 1))
    rows = [(shorten(row[0], widths[0]), *row[1:]) for row in rows]
    cells = (
        [c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        for row in rows
    )
    return ["  ".join(row).rstrip() for row in cells]


def wrapped(indent: str, text: str) -> list[str]:
    """`text` in lines of at most WIDTH characters, each begun with `indent`."""
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent)


def few(names: Sequence[str], most: int = 4) -> str:
    """The first of them, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


_STYLE = "text-align:right;padding:0.1em 0.7em"
_LEFT = "text-align:left;padding:0.1em 0.7em"


def _row(cells: Sequence[str], left: Iterable[int], tag: str = "td") -> str:
    left = set(left)
    styled = (f'<{tag} style="{_LEFT if i in left else _STYLE}">{escape(cell)}</{tag}>' for i, cell in enumerate(cells))
    return f"<tr>{''.join(styled)}</tr>"


def table_html(
    caption: str, head: Sequence[str], rows: Sequence[Sequence[str]], left: Iterable[int], notes: Sequence[str] = ()
) -> str:
    """A caption in bold, one table, and a list of notes below it; every text is escaped.

    Args:
        left: the columns that stand flush left.
    """
    left = set(left)
    table = (
        f"<table><thead>{_row(head, left, 'th')}</thead><tbody>{''.join(_row(r, left) for r in rows)}</tbody></table>"
    )
    listed = f"<ul>{''.join(f'<li>{escape(note)}</li>' for note in notes)}</ul>" if notes else ""
    return f"<div><b>{escape(caption)}</b>{table if rows else ''}{listed}</div>"
