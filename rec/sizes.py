"""What a shop's size can be, and how a garment fitted: one place for what files and requests are held to.

Size of an event and fit feedback are known only after the choice: no feature of retrieval or ranking reads them, and
the fit head reads those of earlier events alone (`rec.worn`).
"""

import re

FITS = ("small", "fit", "large")
"""Feedback on a garment as worn, ascending: too small, as it should be, too large. Ids are 1-based; 0 is none."""

MAX_SIZE_CHARS = 40

_NUMBER = re.compile(
    r"(?:[A-Za-z]{1,3}[ .-]?)?(\d{1,4}(?:[.,]\d+)?)(?:\s*[/x-]\s*\d{1,4}(?:[.,]\d+)?|\s?[A-Za-z]{0,2})"
)


def number(size: str) -> float | None:
    """The numeric reading of a size, None where there is none: "8" 8, "EU 38" 38, "12W" 12, "34/32" 34, "M" None."""
    found = _NUMBER.fullmatch(size.strip())
    return float(found[1].replace(",", ".")) if found else None
