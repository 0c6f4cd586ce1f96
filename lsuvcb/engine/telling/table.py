"""The report and the survey as HTML tables, for notebooks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

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
