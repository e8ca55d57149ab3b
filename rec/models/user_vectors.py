"""User vectors of many states, what they say encoded by the text encoder: for training and evaluation."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rec.config import Text
from rec.models import text_encoder
from rec.models.text_encoder import TextEncoder
from rec.models.user_tower import UserTower
from rec.state import UserState

STATES_PER_BLOCK = 1_024

Floats = NDArray[np.float32]


class UserVectors:
    """The tower with the text encoder, which is loaded when somebody first says something that the tower reads."""

    def __init__(self, tower: UserTower, text: Text) -> None:
        self._tower, self._text = tower, text
        self._encoder: TextEncoder | None = None

    def __call__(self, states: Sequence[UserState]) -> Floats:
        """Unit vectors float32[B, d]."""
        made = [np.empty((0, self._tower.shape.width), np.float32)]
        for start in range(0, len(states), STATES_PER_BLOCK):
            block = states[start : start + STATES_PER_BLOCK]
            made.append(self._tower.vectors(block, self._contexts([state.context for state in block])))
        return np.concatenate(made)

    def _contexts(self, texts: list[str]) -> Floats | None:
        """float32[B, W], zeros where nothing is said; None when nobody says anything or the tower does not read it."""
        distinct = ["", *sorted(set(texts) - {""})]
        if len(distinct) == 1 or "context" not in self._tower.shape.inputs:
            return None
        if self._encoder is None:
            self._encoder = text_encoder.load(self._text)
        place = {text: row for row, text in enumerate(distinct)}
        return self._encoder.embed(distinct)[[place[text] for text in texts]]
