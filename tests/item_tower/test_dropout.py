"""Dropout: how much it drops, what the rest becomes, and that torch's generator alone decides."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rec.models.dropout import Dropout


@given(p=st.floats(0.01, 0.99), seed=st.integers(0, 2**31), rows=st.integers(0, 70), width=st.integers(1, 9))
def test_numbers_are_zero_or_as_much_greater_and_so_are_their_gradients(
    p: float, seed: int, rows: int, width: int
) -> None:
    torch.manual_seed(seed)
    x = torch.ones(rows, width, requires_grad=True)
    made = Dropout(p)(x)
    made.backward(torch.ones_like(made))
    assert x.grad is not None
    assert torch.equal(made, x.grad)
    greater = 1 / (1 - round(p * 65_536) / 65_536)
    assert all(value == pytest.approx(greater) for value in made[made != 0].tolist())


@pytest.mark.parametrize("p", [0.02, 0.1, 0.5, 0.9])
def test_as_many_are_dropped_as_asked_and_one_does_not_tell_of_the_next(p: float) -> None:
    torch.manual_seed(0)
    dropped = (Dropout(p)(torch.ones(1_000_000)) == 0).float()
    error = (p * (1 - p) / len(dropped)) ** 0.5
    assert float(dropped.mean()) == pytest.approx(p, abs=4 * error)
    for apart in range(1, 9):
        both = float((dropped[apart:] * dropped[:-apart]).mean())
        assert both == pytest.approx(p * p, abs=5 * p * error + 4 * p / 1_000), apart


def test_equal_seeds_have_equal_masks_and_each_call_has_its_own() -> None:
    layer, x = Dropout(0.5), torch.ones(1_000)
    torch.manual_seed(3)
    first, second = layer(x), layer(x)
    torch.manual_seed(3)
    assert torch.equal(layer(x), first)
    assert torch.equal(layer(x), second)
    assert not torch.equal(first, second)


@pytest.mark.parametrize(("p", "training"), [(0.5, False), (0.0, True), (0.0, False)])
def test_nothing_is_dropped_where_nothing_is_to_be(p: float, training: bool) -> None:
    x = torch.ones(10)
    state = torch.get_rng_state()
    assert torch.equal(Dropout(p).train(training)(x), x)
    assert torch.equal(torch.get_rng_state(), state)


def test_all_are_dropped_where_all_are_to_be() -> None:
    assert not Dropout(1.0)(torch.ones(10)).any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_numbers_than_float32_stay_what_they_are(dtype: torch.dtype) -> None:
    x = torch.ones(6, 40, dtype=dtype).T  # not contiguous
    made = Dropout(0.5)(x)
    assert made.dtype == dtype
    assert set(made.unique().tolist()) == {0.0, 2.0}


def test_a_compiled_layer_is_one_graph_and_drops() -> None:
    torch.manual_seed(0)
    layer = torch.compile(Dropout(0.5), fullgraph=True, backend="eager")
    assert 300 < int((layer(torch.ones(1_000)) == 0).sum()) < 700
