"""The sizes of a catalogue as the fit head reads them: by name, by name within a garment kind, and as a number.

A name is read within its kind, because an 8 of shoes is no 8 of dresses; it is read across kinds too, where most kinds
have few events. Numbers are z-scored within the kind, or over all of them where the kind has few.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rec import sizes

MIN_EVENTS = 5
"""Events of a size below which its name is not known."""
MIN_NUMBERS = 30
"""Events with a number below which a kind has no scale of its own."""
Z_LIMIT = 5.0

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


def name_of(size: str) -> str:
    """A size as it is told apart from others: case and blanks do not count."""
    return " ".join(size.casefold().split())


@dataclass(frozen=True, slots=True)
class Encoded:
    """Q sizes; see `rec.models.fit_head.Garments`."""

    name: Ints
    pair: Ints
    z: Floats


class SizeTable:
    """Names and scales; kinds are 0 (none) to num_kinds - 1."""

    def __init__(self, written: Sequence[str], names: Sequence[str], pairs: Sequence[Sequence[Any]],
                 mean: Sequence[float], std: Sequence[float]) -> None:  # fmt: skip
        """`pairs` are (kind, name); `mean` and `std` are by kind, std positive; `written` see below."""
        self.written = list(written)
        """Sizes that a garment may be offered in, as the shop writes them."""
        self._names = list(names)
        self._pairs = [(int(kind), str(name)) for kind, name in pairs]
        self._name_id = {name: id for id, name in enumerate(self._names, 1)}
        self._pair_id = {pair: id for id, pair in enumerate(self._pairs, 1)}
        self._mean, self._std = np.array(mean, np.float64), np.array(std, np.float64)

    @classmethod
    def build(cls, kinds: Ints, written: Sequence[str], numbers: Floats, num_kinds: int, offered: Sequence[str]
              ) -> "SizeTable":  # fmt: skip
        """Of events in sizes: kinds int64[Q], sizes Q and their numbers float32[Q]; `offered` becomes `written`."""
        named = [name_of(size) for size in written]
        names = sorted(name for name, count in Counter(named).items() if count >= MIN_EVENTS)
        both = Counter(zip(kinds.tolist(), named, strict=True))
        pairs = sorted(pair for pair, count in both.items() if pair[0] and count >= MIN_EVENTS)
        known = np.isfinite(numbers)
        mean, std = np.zeros(num_kinds), np.ones(num_kinds)
        mean[:], std[:] = _scale(numbers[known])
        for kind in range(1, num_kinds):
            own = numbers[known & (kinds == kind)]
            if len(own) >= MIN_NUMBERS:
                mean[kind], std[kind] = _scale(own)
        return cls(offered, names, pairs, mean.tolist(), std.tolist())

    @property
    def num_names(self) -> int:
        """Rows of a table over names; row 0 is a name that is not known."""
        return 1 + len(self._names)

    @property
    def num_pairs(self) -> int:
        """Rows of a table over names within kinds; row 0 as above."""
        return 1 + len(self._pairs)

    @property
    def num_kinds(self) -> int:
        """Rows of a table over kinds; row 0 is no kind."""
        return len(self._mean)

    def encode(self, kinds: Ints, written: Sequence[str], numbers: Floats) -> Encoded:
        """Q sizes of garments of `kinds` int64[Q]; `numbers` float32[Q] are nan where a size is none."""
        named = [name_of(size) for size in written]
        z = np.clip((numbers - self._mean[kinds]) / self._std[kinds], -Z_LIMIT, Z_LIMIT)
        return Encoded(
            name=np.array([self._name_id.get(name, 0) for name in named], np.int64),
            pair=np.array([self._pair_id.get(p, 0) for p in zip(kinds.tolist(), named, strict=True)], np.int64),
            z=np.nan_to_num(z, nan=0.0).astype(np.float32),
        )

    def places(self, written: Sequence[str]) -> Ints:
        """int64[Q] positions in `written`; KeyError for a size that is none of it."""
        place = {size: number for number, size in enumerate(self.written)}
        return np.array([place[size] for size in written], np.int64)

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {
            "written": self.written,
            "names": self._names,
            "pairs": [list(pair) for pair in self._pairs],
            "mean": self._mean.tolist(),
            "std": self._std.tolist(),
        }

    @classmethod
    def of_json(cls, value: dict[str, Any]) -> "SizeTable":
        """What `to_json` gave."""
        return cls(**value)


def numbers_of(written: Sequence[str]) -> Floats:
    """float32[Q] numeric readings, nan where there is none."""
    found = {size: sizes.number(size) for size in dict.fromkeys(written)}
    return np.array([np.nan if found[size] is None else found[size] for size in written], np.float32)


def _scale(numbers: Floats) -> tuple[float, float]:
    """Mean and standard deviation; 0 and 1 of nothing, 1 of what never varies."""
    if not len(numbers):
        return 0.0, 1.0
    spread = float(numbers.std())
    return float(numbers.mean()), spread if spread > 1e-6 else 1.0
