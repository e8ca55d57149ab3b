"""The fit head: an ordinal model whose answers are chances, whatever is known."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rec.errors import ArtifactError
from rec.models import fit_head
from rec.models.fit_head import FitHead, Garments, Items, Past, Shape
from rec.models.size_table import SizeTable

WIDTH, HISTORY = 3, 4


def _head(seed: int = 0) -> FitHead:
    torch.manual_seed(seed)
    table = SizeTable(["8", "10"], ["8", "10"], [(1, "8")], [9.0, 9.0], [1.0, 2.0])
    head = FitHead(Shape(WIDTH, HISTORY, ("height_cm", "cup"), (170.0, 3.0), (6.0, 1.0)), table)
    for parameter in head.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return head.eval()


def _garments(rng: np.random.Generator, *shape: int) -> Garments:
    def number(*more: int) -> torch.Tensor:
        return torch.from_numpy(rng.normal(size=(*shape, *more)).astype(np.float32))

    def row(high: int) -> torch.Tensor:
        return torch.from_numpy(rng.integers(0, high, shape))

    return Garments(row(2), row(3), row(2), number(), number(), number(), number(WIDTH))


def _past(rng: np.random.Generator, users: int, history: int = HISTORY) -> Past:
    known = torch.from_numpy(rng.random((users, history)) < 0.7)
    return Past(_garments(rng, users, history), torch.from_numpy(rng.integers(0, 4, (users, history))) * known, known)


@given(st.integers(0, 10_000), st.integers(0, 3))
@torch.inference_mode()
def test_answers_are_chances_that_do_not_depend_on_the_batch(seed: int, missing: int) -> None:
    rng, head = np.random.default_rng(seed), _head(seed)
    users = 5
    profiles = torch.from_numpy(rng.normal([170, 3], [8, 2], (users, 2)).astype(np.float32))
    profiles[:missing] = torch.nan
    profiles[-1, 0] = torch.nan
    past, asked = _past(rng, users), _garments(rng, users)
    found, wanted = head(profiles, past, asked, torch.arange(users))
    torch.testing.assert_close(found.exp().sum(1), torch.ones(users))
    for user in range(users):
        one = torch.tensor([user])
        alone, need = head(
            profiles[one],
            Past(*(_rows(part, one) for part in (past.garments, past.fits, past.known))),
            _rows(asked, one),
            torch.zeros(1, dtype=torch.int64),
        )
        torch.testing.assert_close(alone[0], found[user], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(need[0], wanted[user], atol=1e-5, rtol=1e-5)


def _rows(part: object, at: torch.Tensor) -> object:
    if isinstance(part, torch.Tensor):
        return part[at]
    return type(part)(*(getattr(part, name)[at] for name in part.__dataclass_fields__))  # type: ignore[attr-defined]


@given(st.integers(0, 10_000))
@torch.inference_mode()
def test_a_greater_number_is_never_less_likely_to_be_too_large(seed: int) -> None:
    rng, head = np.random.default_rng(seed), _head(seed)
    steps = 9
    one = _garments(rng, 1)
    asked = Garments(
        *(getattr(one, name).repeat(steps, *[1] * (getattr(one, name).dim() - 1)) for name in Garments.__slots__)
    )
    asked = Garments(asked.kind, asked.name, asked.pair, torch.linspace(-6, 6, steps), *(
        asked.location, asked.spread, asked.vector))  # fmt: skip
    profiles = torch.tensor([[180.0, torch.nan]])
    found = head(profiles, _past(rng, 1), asked, torch.zeros(steps, dtype=torch.int64))[0].exp()
    assert (found[:, 0].diff() <= 1e-6).all()
    assert (found[:, 2].diff() >= -1e-6).all()


@torch.inference_mode()
def test_padding_of_the_past_changes_nothing() -> None:
    rng, head = np.random.default_rng(3), _head()
    past, asked = _past(rng, 4), _garments(rng, 4)
    noise = _past(np.random.default_rng(4), 4)
    moved = Past(
        Garments(
            *(
                torch.where(
                    past.known.reshape(*past.known.shape, *[1] * (getattr(past.garments, name).dim() - 2)),
                    getattr(past.garments, name),
                    getattr(noise.garments, name),
                )
                for name in Garments.__slots__
            )
        ),
        past.fits,
        past.known,
    )
    profiles = torch.full((4, 2), torch.nan)
    owners = torch.arange(4)
    torch.testing.assert_close(head(profiles, past, asked, owners), head(profiles, moved, asked, owners))


def test_a_saved_head_is_the_same_and_a_wrong_file_is_named(tmp_path: Path) -> None:
    head = _head()
    numbers = np.ones(3, np.float32)
    items = Items(
        np.array([0, 1, 1]),
        numbers,
        numbers,
        np.ones((3, WIDTH), np.float32),
        np.zeros((2, 2), np.float32),
        np.array([0, 1, 3, 3]),
        np.zeros(3, int),
    )
    fit_head.save(tmp_path, head, items)
    again, theirs = fit_head.load(tmp_path)
    assert again.shape == head.shape
    for name, value in head.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, atol=0, rtol=0)
    np.testing.assert_array_equal(theirs.offsets, items.offsets)
    text = (tmp_path / fit_head.DESCRIPTION).read_text()
    (tmp_path / fit_head.DESCRIPTION).write_text(text.replace('"width": 3', '"width": 4'))
    with pytest.raises(ArtifactError, match=r"fit_head\.safetensors does not fit fit_head\.json"):
        fit_head.load(tmp_path)


@torch.inference_mode()
def test_eighty_sizes_take_little_time() -> None:
    """Ten products in eight sizes: a millisecond is what a quiet core needs at most; a loaded one gets ten."""
    rng, head = np.random.default_rng(0), _head()
    past, asked, owners = _past(rng, 1), _garments(rng, 80), torch.zeros(80, dtype=torch.int64)
    profiles = torch.tensor([[170.0, 3.0]])
    spent = []
    for _ in range(50):
        started = time.perf_counter()
        head(profiles, past, asked, owners)
        spent.append(time.perf_counter() - started)
    assert float(np.median(spent)) < 0.01
