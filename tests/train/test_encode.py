"""Which texts are the same: flat arrays against lists."""

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from rec.encode import distinct
from rec.models.item_inputs import Ragged


@given(st.lists(st.lists(st.integers(0, 2), max_size=3), max_size=20))
def test_distinct_titles_are_numbered_as_they_first_occur(titles: list[list[int]]) -> None:
    column = pa.chunked_array([pa.array(part, pa.list_(pa.int32())) for part in (titles[:7], titles[7:])])
    first, text_of_item = distinct(Ragged.of(column))
    known = list(dict.fromkeys(map(tuple, titles)))
    assert [titles[item] for item in first] == [list(title) for title in known]
    assert text_of_item.tolist() == [known.index(tuple(title)) for title in titles]
    assert first.dtype == text_of_item.dtype == np.int64
