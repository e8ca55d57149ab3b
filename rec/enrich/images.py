"""Images of a product for the model, or why each could not be had.

An image that is missing never costs its product the answer: the product is asked with the others, or with its text
alone. Files are read below one folder only, links followed; what is fetched, see `rec.enrich.fetch`; every image is
decoded and drawn anew (`rec.enrich.picture`), one at a time, so that memory holds one at its full size.

What an image shows is data, its words too, and could tell the model to say anything; but the model's answer about it is
a choice from a closed list per key (`rec.enrich.chat`), so that a wrong value is all that can come of it.
"""

import hashlib
import threading
from collections import Counter
from pathlib import Path

from rec.config import Images as Options
from rec.enrich.fetch import Fetcher
from rec.enrich.picture import jpeg
from rec.enrich.places import Choice, File, Lost, Pictures, Taken, located, place, require

HASH_CHARS = 16
"""Of an image's SHA-256, in the evidence of what it shows."""


class Images:
    """Reads images. `take` may be called by many threads."""

    def __init__(self, options: Options) -> None:
        """`options.folder` is absolute. Raises InputError where it is not there."""
        self._options = options
        if options.folder:
            require(Path(options.folder))
        self._fetcher = Fetcher(options)
        self._drawing = threading.Lock()

    def take(self, choice: Choice) -> Taken:
        """The chosen images, in order; those that cannot be had are left out."""
        jpegs: list[bytes] = []
        sent: list[str] = []
        refused: Counter[str] = Counter()
        waiting = False
        for url in choice.urls:
            try:
                data = self._read(url)
                with self._drawing:
                    jpegs.append(jpeg(data, self._options.max_edge, self._options.max_pixels))
            except Lost as lost:
                refused[lost.reason] += 1
                waiting |= lost.passing
            else:
                sent.append(hashlib.sha256(data).hexdigest()[:HASH_CHARS])
        return Taken(tuple(jpegs), Pictures(sent=sent, refused=dict(sorted(refused.items()))), waiting)

    def _read(self, url: str) -> bytes:
        found = place(url, self._options)
        if isinstance(found, File):
            return read_file(Path(self._options.folder), found.path, self._options.max_bytes)
        return self._fetcher.get(url if not url.startswith("//") else f"https:{url}")


def read_file(folder: Path, path: str, max_bytes: int) -> bytes:
    """A file below `folder`. Raises Lost."""
    real = located(folder, path)
    try:
        with real.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError:
        raise Lost("its file cannot be read", passing=True) from None
    if len(data) > max_bytes:
        raise Lost("it has more than enrich.images.max_bytes")
    return data
