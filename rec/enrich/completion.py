"""What every engine returns."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Completion:
    """One raw answer."""

    text: str
    finished: bool
    """False when the token budget cut the answer."""
    tokens_in: int
    tokens_out: int
