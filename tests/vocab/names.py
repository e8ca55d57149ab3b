"""What the ids of an STD vocabulary stand for."""

from rec.vocab.std import UNKNOWN, StdVocabulary


def names(vocabulary: StdVocabulary) -> dict[int, tuple[str, str]]:
    """Id → (key, value) of all ids but padding."""
    pairs = [(key, value) for key in vocabulary.keys for value in (UNKNOWN, *vocabulary.values(key))]
    return {vocabulary.id_of(*pair): pair for pair in pairs}
