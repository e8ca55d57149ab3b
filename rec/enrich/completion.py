"""What every engine returns."""

from dataclasses import dataclass

REPAIR_BYTES = 1_000
"""The most that an engine adds to a prompt to have an answer repaired, the answer itself apart."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One raw answer."""

    text: str
    finished: bool
    """False when the token budget cut the answer."""
    tokens_in: int
    tokens_out: int
