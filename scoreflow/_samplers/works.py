"""The works that samplers, guidance and metrics rest on: references.bib, read once."""

from __future__ import annotations

import functools
import re
import unicodedata
from importlib.resources import files

ACCENTS = {'"': "\u0308", "'": "\u0301", "`": "\u0300", "^": "\u0302", "~": "\u0303", "v": "\u030c", "c": "\u0327"}
LETTERS = {"ss": "ß", "o": "ø", "O": "Ø", "l": "ł", "ae": "æ", "i": "ı"}


@functools.cache
def references() -> dict[str, str]:
    """Every entry of references.bib, as BibTeX, by key."""
    text = files("scoreflow._samplers").joinpath("references.bib").read_text(encoding="utf-8")
    entries = [entry.strip() for entry in re.split(r"(?m)^(?=@)", text) if entry.startswith("@")]
    return {re.match(r"@\w+\{([^,]+),", entry)[1]: entry for entry in entries}  # type: ignore[index]


def short(key: str) -> str:
    """A work as "Ho et al., 2020"."""
    names = [name.split(",")[0] for name in entry_field(key, "author").split(" and ")]
    who = names[0] if len(names) == 1 else f"{names[0]} & {names[1]}" if len(names) == 2 else f"{names[0]} et al."
    return f"{who}, {entry_field(key, 'year')}"


def entry_field(key: str, name: str) -> str:
    """A field of an entry, as plain text."""
    return untex(re.search(rf"\b{name}\s*=\s*{{(.*?)}},?\n", references()[key])[1])  # type: ignore[index]


def untex(text: str) -> str:
    r"""Plain text of BibTeX: `R{\"o}{\ss}ler` as Rößler."""
    text = re.sub(r"\{\\(\W|[vc](?=\{))\{?(\w)\}?\}", lambda found: found[2] + ACCENTS[found[1]], text)
    text = re.sub(r"\{\\(\w+)\}", lambda found: LETTERS[found[1]], text)
    return unicodedata.normalize("NFC", re.sub(r"[{}]", "", text))
