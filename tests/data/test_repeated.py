"""Which live events the log has, against the definition."""

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from rec.data.clean import EVENT_TABLE
from rec.data.repeated import in_log

Told = tuple[str, str, str, int]
EVENTS = st.lists(
    st.tuples(st.sampled_from("uv"), st.sampled_from("pq"), st.sampled_from(["view", "cart"]), st.integers(0, 300)),
    max_size=12,
)


def table(events: list[Told]) -> pa.Table:
    """Clean events; times are seconds."""
    columns = dict(zip(("user_id", "product_id", "event", "at"), zip(*events, strict=True), strict=True))
    made = {
        field.name: pa.array(columns.get(field.name, [None] * len(events)), pa.string()).dictionary_encode()
        if pa.types.is_dictionary(field.type)
        else pa.nulls(len(events), field.type)
        for field in EVENT_TABLE
        if field.name != "at"
    }
    at = pa.array(np.array(columns["at"], np.int64) * 1_000_000).cast(EVENT_TABLE.field("at").type)
    return pa.table({name: at if name == "at" else made[name] for name in EVENT_TABLE.names})


@given(log=EVENTS, live=EVENTS)
def test_an_event_of_the_log_is_one_within_a_minute(log: list[Told], live: list[Told]) -> None:
    if not log + live:
        return
    expected = {
        len(log) + place
        for place, (*what, at) in enumerate(live)
        if any(what == list(theirs) and abs(at - then) <= 60 for *theirs, then in log)
    }
    found = in_log(table(log + live), len(log))
    assert sorted(found.tolist()) == sorted(expected)
