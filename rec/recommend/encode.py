"""From user states to user vectors, with the text encoder run once per distinct context."""

import logging
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rec.bundle import Bundle
from rec.models import text_encoder, user_tower
from rec.models.encoder_files import ENCODER_FILES
from rec.models.text_encoder import TextEncoder
from rec.recommend.request import Encoded
from rec.state import UserState

CACHED_TEXTS = 4_096

log = logging.getLogger(__name__)


class UserEncoder:
    """The user tower of one bundle."""

    def __init__(self, bundle: Bundle) -> None:
        self.tower = user_tower.load(bundle.folder("user_tower"))
        self._encoder: TextEncoder | None = None
        if "context" in self.tower.shape.inputs:
            self._encoder = _encoder(bundle)
        if self._encoder is not None:  # weights are mapped files until read: nobody is to wait for that
            self._encoder.embed(["warm-up"])
        self._texts: OrderedDict[str, np.ndarray] = OrderedDict()
        self._held = threading.Lock()
        """Over the texts, for a moment."""
        self._reading = threading.Lock()
        """Over the text encoder."""

    def encode(self, states: Sequence[UserState]) -> list[Encoded]:
        """The vector of each state, and what it would be without the context and without the profile."""
        variants = [self._variants(state) for state in states]
        every = [each for named in variants for each in named.values()]
        vectors = iter(self.tower.vectors(every, np.stack([self._text(each.context) for each in every])))
        return [Encoded(next(vectors), {name: next(vectors) for name in named if name}) for named in variants]

    def read(self, text: str) -> None:
        """Encode a context ahead of `encode`, so that nobody whose state is encoded with it waits for the text."""
        self._text(text)

    def _variants(self, state: UserState) -> dict[str, UserState]:
        """The state, and by the name of each input that is given the state without it."""
        states = {"": state}
        if state.context and self._encoder is not None:
            states["context"] = replace(state, context="")
        if np.isfinite(state.profile).any() and "profile" in self.tower.shape.inputs:
            states["profile"] = replace(state, profile=np.full_like(state.profile, np.nan))
        return states

    def _text(self, text: str) -> np.ndarray:
        """float32[W] of a context; zeros for none."""
        if not text or self._encoder is None:
            return np.zeros(self.tower.shape.text_width, np.float32)
        found = self._read_before(text)
        if found is not None:
            return found
        with self._reading:
            found = self._read_before(text)  # by who had the encoder meanwhile
            if found is None:
                found = self._encoder.embed([text])[0]
                with self._held:
                    self._texts[text] = found
                    if len(self._texts) > CACHED_TEXTS:
                        self._texts.popitem(last=False)
        return found

    def _read_before(self, text: str) -> np.ndarray | None:
        with self._held:
            if text in self._texts:
                self._texts.move_to_end(text)
            return self._texts.get(text)


def _encoder(bundle: Bundle) -> TextEncoder | None:
    """The text encoder that the bundle was made with; None, which the log says, where its folder has other files now:
    what shoppers say is then not read, as states of other weights mean nothing to the tower.
    """
    text = bundle.config.text
    now = text_encoder.files(text).get(ENCODER_FILES)
    if now is not None and bundle.encoder_files not in (None, now):
        log.error(
            "bundle %s reads no context: the folder text.encoder %r has other files than it was made with; put these "
            "back, or run `python jobs/pipeline.py --recipe %s`",
            bundle.id,
            text.encoder,
            bundle.recipe,
        )
        return None
    return text_encoder.load(text)
