"""Words in free text: the quick look before the search misses nothing that the search finds."""

from hypothesis import given, strategies

from rec.vocab import words
from rec.vocab.words import Finder, searchable

WORDS = ["coat", "rain coat", "t-shirt", "v neck", "a-line", "100% wool", "tencel™", "naïve", "면", "린넨"]
PIECES = strategies.sampled_from(
    [*WORDS, *"-_/. '™%1", "Rain", "COAT", "coats", "raincoat", "ﬁne", "İ", "的", "\u0301", "면의"]
)


@given(strategies.lists(PIECES, max_size=8))
def test_the_quick_look_misses_nothing(pieces: list[str]) -> None:
    prepared, _ = searchable("".join(pieces))
    for finder in (Finder(WORDS), Finder(["v neck"])):
        there = words.latin_words(prepared)
        if there is not None:
            assert finder._latin is not None
            assert finder.spans(prepared) == [match.span() for match in finder._latin.finditer(prepared)]
