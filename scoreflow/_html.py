"""Cards and tables for notebooks: plain HTML in the notebook's own colours."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

WIDEST = 1200
CELL = "text-align: left; vertical-align: top; padding: .15em .8em .15em 0"


def card(title: str, facts: Mapping[str, object], *parts: str) -> str:
    """A title, a table of facts, and what stands below."""
    rows = "".join(
        f'<tr><th scope="row" style="{CELL}">{escape(name)}</th><td style="{CELL}">{escape(str(value))}</td></tr>'
        for name, value in facts.items()
    )
    return f"<div><p><strong>{escape(title)}</strong></p><table>{rows}</table>{''.join(parts)}</div>"


def table(head: Sequence[str], rows: Sequence[Sequence[object]], most: int | None = None) -> str:
    """A table that scrolls inside its own box; of more than `most` rows the middle ones are left out, and counted."""
    shown: list[Sequence[object] | None] = list(rows)
    if most is not None and len(rows) > most:
        first = (most + 1) // 2
        shown = [*rows[:first], None, *rows[len(rows) - (most - first) :]]
    heads = "".join(f'<th scope="col" style="{CELL}">{escape(name)}</th>' for name in head)
    body = "".join(_row(row) if row is not None else _row([f"… {len(rows) - len(shown) + 1} more"]) for row in shown)
    return f'<div style="overflow-x: auto"><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'


def _row(cells: Iterable[object]) -> str:
    return "<tr>" + "".join(f'<td style="{CELL}">{escape(str(cell))}</td>' for cell in cells) + "</tr>"


def note(text: str) -> str:
    """A line of text."""
    return f"<p>{escape(text)}</p>"


def image(picture: Image, alt: str) -> str:
    """A picture within the page, of at most 1200 pixels a side."""
    out = io.BytesIO()
    picture = picture.copy()
    picture.thumbnail((WIDEST, WIDEST))
    picture.save(out, format="PNG", optimize=True)
    data = base64.b64encode(out.getvalue()).decode()
    return f'<p><img alt="{escape(alt)}" style="max-width: 100%" src="data:image/png;base64,{data}"></p>'
