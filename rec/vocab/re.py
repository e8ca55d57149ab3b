"""RE vocabulary: one growing table of word tokens beside the key table of STD.

A value becomes (key, token) pairs, so "soft touch" under `fabric` and under `vibe` share tokens and differ in
keys. Growth appends the new tokens by (count descending, token): the same counts give the same ids on any
cluster, and an id once given never changes. A vocabulary is a value: growing makes another one.
"""

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

from rec.artifact import write_json
from rec.errors import ArtifactError

UNKNOWN_ID = 1
_FIRST_ID = 2

_TOKEN = re.compile(r"\d+(?:[.,/]\d+)+|[^\W_]+(?:'[^\W_]+)*")


def split_words(text: str) -> list[str]:
    """Word tokens: NFKC, casefolded, no punctuation; `8.5`, `3/4` and `men's` stay whole, Korean splits at space."""
    plain = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return _TOKEN.findall(plain.replace("’", "'").replace("⁄", "/"))  # NFKC writes ¾ with a fraction slash


class ReVocabulary:
    """Keys and tokens with their ids: key ids 1..len(keys), token ids 2.., 0 is padding, 1 an unknown token."""

    def __init__(self, keys: Sequence[str], tokens: Sequence[str]) -> None:
        self.keys = list(keys)
        """Key names in the order of their ids."""
        self.tokens = list(tokens)
        """Tokens in the order of their ids."""
        self._key_id = {key: id for id, key in enumerate(self.keys, start=1)}
        self._token_id = {token: id for id, token in enumerate(self.tokens, start=_FIRST_ID)}
        if len(self._token_id) != len(self.tokens) or len(self._key_id) != len(self.keys):
            raise ValueError("keys and tokens must be distinct")

    @property
    def num_tokens(self) -> int:
        """Rows of a table over token ids, padding and unknown included."""
        return _FIRST_ID + len(self.tokens)

    def token_id(self, token: str) -> int:
        """Id of a token of `split_words`; the unknown id when the vocabulary lacks it."""
        return self._token_id.get(token, UNKNOWN_ID)

    def ids(self, key: str, value: str) -> list[tuple[int, int]]:
        """(key id, token id) of each word of the value, in order. KeyError when the key is none of `keys`."""
        key_id = self._key_id[key]
        return [(key_id, self.token_id(token)) for token in split_words(value)]

    def grow(self, counts: Mapping[str, int], min_count: int, keys: Sequence[str]) -> "ReVocabulary":
        """This vocabulary with the tokens appended that `min_count` products carry, and with new keys appended.

        `counts` is products per token. Raises ArtifactError when `keys` do not begin with the present ones.
        """
        if list(keys[: len(self.keys)]) != self.keys:
            raise ArtifactError(
                f"the RE vocabulary has keys {self.keys}, the STD vocabulary {list(keys)}: ids of keys may not change, "
                "remove the vocabulary artifact to start a new one"
            )
        new = [token for token, count in counts.items() if count >= min_count and token not in self._token_id]
        return ReVocabulary(keys, self.tokens + sorted(new, key=lambda token: (-counts[token], token)))

    def save(self, path: Path) -> None:
        """Write the vocabulary as JSON."""
        write_json(path, {"keys": self.keys, "tokens": self.tokens})

    @staticmethod
    def load(path: Path) -> "ReVocabulary":
        """Read what `save` wrote. Raises ArtifactError when the file is missing or damaged."""
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            return ReVocabulary(found["keys"], found["tokens"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"{path} is no RE vocabulary ({error}): run `python jobs/tensorize.py`") from error
