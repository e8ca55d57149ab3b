"""What the ids mean that an item tower was trained on, beside its weights.

Ids are rows of its tables: under another vocabulary of the same size they would be read for something else, and
nothing in the vectors would tell.
"""

import json
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path

from rec import artifact
from rec.errors import ArtifactError
from rec.vocab.re import ReVocabulary
from rec.vocab.std import UNKNOWN, StdVocabulary

FILE = "known_ids.json"


@dataclass(frozen=True, slots=True)
class KnownIds:
    """Names in the order of their ids."""

    keys: list[str]
    std: list[str]
    """Each `key=value`; the key's own unknown is a value, too."""
    re: list[str]
    """Tokens."""

    @staticmethod
    def of(std: StdVocabulary, re: ReVocabulary) -> "KnownIds":
        """Those of the vocabularies."""
        named = {std.id_of(key, value): f"{key}={value}" for key in std.keys for value in (UNKNOWN, *std.values(key))}
        return KnownIds(std.keys, [named[id] for id in sorted(named)], re.tokens)

    def save(self, folder: Path) -> None:
        """Write FILE into `folder`."""
        artifact.write_json(folder / FILE, asdict(self))

    @staticmethod
    def load(folder: Path) -> "KnownIds | None":
        """What `save` wrote; None beside a tower of a program that did not write it."""
        path = folder / FILE
        return KnownIds(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None

    def check(self, now: "KnownIds", tower: Path, vocabulary: Path) -> None:
        """Raise ArtifactError unless `now`, which may have more, begins with these, and has no other keys."""
        for what, before, after in (
            ("key", self.keys, now.keys),
            ("STD value", self.std, now.std),
            ("RE token", self.re, now.re),
        ):
            for old, new in zip_longest(before, after[: len(before)]):
                if old != new:
                    is_now = "gone" if new is None else f"{new!r}"
                    raise ArtifactError(
                        f"the {what} {old!r} that the item tower in {tower} was trained on is {is_now} in "
                        f"{vocabulary}: put back the vocabulary of its training, or run `python jobs/pretrain.py` again"
                    )
        if len(now.keys) > len(self.keys):
            raise ArtifactError(
                f"the key {now.keys[len(self.keys)]!r} in {vocabulary} came after the training of the item tower in "
                f"{tower}, which has no row for it: run `python jobs/pretrain.py` again"
            )
