"""The size of each recommended product that shoppers alike took and that fits, for bundles with a fit head."""

from typing import Any

import numpy as np
import torch

from rec.bundle import FIT_HEAD, Bundle
from rec.index.catalogue import Catalogue, Known, PastSize
from rec.models import fit_head
from rec.models.fit_head import Garments, Past
from rec.models.size_table import Encoded, numbers_of
from rec.recommend.request import Request
from rec.recommend.shelf import Shelf
from rec.sizes import FITS

DIGITS = 4


class Fitter:
    """The fit head of one bundle; without one, no fit is foretold."""

    def __init__(self, bundle: Bundle, shelf: Shelf) -> None:
        self._shelf = shelf
        self._head = None
        if bundle.has(FIT_HEAD):
            self._head, self._items = fit_head.load(bundle.folder(FIT_HEAD))
            table = self._head.sizes
            self._written = [table.written[place] for place in self._items.offered.tolist()]
            self._owners = np.repeat(np.arange(len(self._items.kind)), np.diff(self._items.offsets))
            self._offered = table.encode(self._items.kind[self._owners], self._written, numbers_of(self._written))
            self._popularity = self._items.popularity[self._items.kind[self._owners], self._items.offered]

    def add(self, items: list[dict[str, Any]], request: Request, known: Known, catalogue: Catalogue) -> None:
        """Put `fit` into item dictionaries, in place: {size, small, fit, large} of the size of the product that is
        likeliest to be chosen and to fit, or None where nothing is known of the shopper's body and sizes, or of the
        product's sizes.
        """
        for item in items:
            item["fit"] = None
        if self._head is None or not items:
            return
        profile = {**known.profile, **request.profile}
        names = self._head.shape.profile_names
        profiles = np.array([[profile.get(name, np.nan) for name in names]], np.float32)  # float32[1, P]
        history, past = self._head.shape.history, []
        if request.user_id is not None and history:
            past = [each for each in catalogue.sizes(request.user_id, history) if self._shelf.known(each.product_id)]
        past += [PastSize(told.product_id, told.size, told.fit) for told in request.history if told.size]
        past = past[len(past) - min(len(past), history) :]
        if not past and not np.isfinite(profiles).any():
            return
        rows = self._shelf.rows([str(item["product_id"]) for item in items])
        for item, found in zip(items, self._best(rows, profiles, past), strict=True):
            item["fit"] = found

    @torch.inference_mode()
    def _best(self, rows: np.ndarray, profiles: np.ndarray, past: list[PastSize]) -> list[dict[str, Any] | None]:
        """Of each item row int64[k] the best size."""
        assert self._head is not None
        offsets = self._items.offsets
        counts = offsets[rows + 1] - offsets[rows]
        item = np.repeat(np.arange(len(rows)), counts)  # int64[S], over all sizes of all items
        asked = np.arange(len(item)) - np.repeat(np.cumsum(counts) - counts, counts) + offsets[rows][item]
        if not len(asked):
            return [None] * len(rows)
        offered = Encoded(self._offered.name[asked], self._offered.pair[asked], self._offered.z[asked])
        worn_rows = self._shelf.rows([each.product_id for each in past])
        written = [each.size for each in past]
        worn = self._head.sizes.encode(self._items.kind[worn_rows], written, numbers_of(written))
        fits = np.array([[0 if each.fit is None else 1 + FITS.index(each.fit) for each in past]], np.int64)
        before = Past(
            self._garments(worn_rows[None], Encoded(worn.name[None], worn.pair[None], worn.z[None])),
            torch.from_numpy(fits.reshape(1, len(past))),
            torch.ones(1, len(past), dtype=torch.bool),
        )
        garments = self._garments(rows[item], offered)
        question = (torch.from_numpy(profiles), before, garments, torch.zeros(len(asked), dtype=torch.int64))
        found, need = self._head(*question)  # float32[S, 3], float32[S]
        choice = self._head.choice(self._head.chosen.size(garments), need).numpy() + self._popularity[asked]
        merit = choice + found[:, 1].numpy()  # float32[S] log P(chosen) P(fit), but for a constant of the item
        chances = found.exp().numpy()
        best: list[dict[str, Any] | None] = [None] * len(rows)
        order = np.lexsort((-merit, item))
        for at in order[np.unique(item[order], return_index=True)[1]].tolist():
            shares = {fit: round(float(chance), DIGITS) for fit, chance in zip(FITS, chances[at], strict=True)}
            best[int(item[at])] = {"size": self._written[asked[at]], **shares}
        return best

    def _garments(self, rows: np.ndarray, sizes: Encoded) -> Garments:
        items = self._items
        arrays = (
            items.kind[rows], sizes.name, sizes.pair, sizes.z, items.location[rows], items.spread[rows],
            items.vector[rows],
        )  # fmt: skip
        return Garments(*(torch.from_numpy(array) for array in arrays))
