"""From attributes and titles of products to ids: what an actor of tensorization does with one row group."""

from collections.abc import Iterable

import pyarrow as pa

from rec.config import Text
from rec.models import text_encoder
from rec.schema import INTS
from rec.vocab.counting import Files, Pair, pairs_of
from rec.vocab.re import ReVocabulary
from rec.vocab.std import UNKNOWN, StdVocabulary

Ids = list[tuple[int, int]]


class Tensorize:
    """An actor that turns row groups into ids; it holds the vocabularies and the tokenizer."""

    def __init__(self, files: Files, std: str, re: ReVocabulary, max_re_tokens: int, text: Text) -> None:
        """`std` is the TOML text of the STD vocabulary."""
        self._files = files
        self._std = StdVocabulary.parse(std, "std.toml")
        self._re = re
        self._max_re_tokens = max_re_tokens
        self._text = text
        self._tokenizer = text_encoder.load_tokenizer(text)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Rows of TENSORS without `group`, but with `re_cut` int32 (RE tokens left out)."""
        return pa.concat_tables([self._rows(group) for group in batch.column("id").to_pylist()])

    def _rows(self, group: int) -> pa.Table:
        attributes, texts = self._files.attributes(group), self._files.texts(group)
        std = [std_ids(pairs, self._std) for pairs in pairs_of(attributes.column("std"))]
        re = [re_ids(pairs, self._re) for pairs in pairs_of(attributes.column("re"))]
        kept = [ids[: self._max_re_tokens] for ids in re]
        said = zip(*(texts.column(field).to_pylist() for field in self._text.fields), strict=True)
        return pa.table(
            {
                "product_id": attributes.column("product_id"),
                "std_key": pa.array([[key for key, _ in ids] for ids in std], INTS),
                "std_id": pa.array([[id for _, id in ids] for ids in std], INTS),
                "re_key": pa.array([[key for key, _ in ids] for ids in kept], INTS),
                "re_id": pa.array([[id for _, id in ids] for ids in kept], INTS),
                "title_id": pa.array(
                    self._tokenizer.tokenize([joined(parts) for parts in said], self._text.max_tokens), INTS
                ),
                "re_cut": pa.array([len(ids) - len(cut) for ids, cut in zip(re, kept, strict=True)], pa.int32()),
            }
        )


def joined(parts: Iterable[str | None]) -> str:
    """The text that is cut into title tokens, of a product's fields in the recipe's order."""
    return ". ".join(part.strip() for part in parts if part and part.strip())


def std_ids(pairs: list[Pair], vocabulary: StdVocabulary) -> Ids:
    """(key id, id) of the pairs by key, within a key as given, each once; unknown only where a key has nothing else."""
    distinct = list(dict.fromkeys(pairs))
    mapped = {key for key, value in distinct if value != UNKNOWN}
    ids = [
        (vocabulary.key_id(key), vocabulary.id_of(key, value))
        for key, value in distinct
        if value != UNKNOWN or key not in mapped
    ]
    return sorted(ids, key=lambda pair: pair[0])


def re_ids(pairs: list[Pair], vocabulary: ReVocabulary) -> Ids:
    """(key id, token id) of all words of the pairs, in order, each pair of ids once."""
    return list(dict.fromkeys(ids for key, value in pairs for ids in vocabulary.ids(key, value)))
