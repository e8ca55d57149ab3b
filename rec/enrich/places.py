"""Where an image may come from: the one reading of what product data names, before anything is opened.

    a path, file:...        a file in `enrich.images.folder`
    http:, https:, //...    a host in `enrich.images.hosts`

All else is refused. Which images of a product are asked about is decided here alone, without the network, the same on
every worker, and is part of what an answer is found by: a URL by its name, a file by its name and content, for two
shops on one database may both have a `1.jpg`. A file that is not there yet is none of them until it is.
"""

import errno
import hashlib
import json
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, quote, unquote, urlsplit

from pydantic import BaseModel, ConfigDict

from rec.config import Enrich, Images
from rec.errors import InputError

STAMP_BYTES = 65_536
_ABSENT = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*):", re.IGNORECASE)
_PORTS = {"http": 80, "https": 443}
_KEPT = "/?%:@!$&'()*+,;=~-._[]"
"""Characters of a path and query that are sent as they are."""


class Lost(Exception):
    """An image cannot be had; the reason names no product, so that it can be counted."""

    def __init__(self, reason: str, passing: bool = False) -> None:
        """`passing`: it may be had later."""
        super().__init__(reason)
        self.reason = reason
        self.passing = passing


@dataclass(frozen=True, slots=True)
class Web:
    """An address on an admitted host."""

    scheme: str
    host: str
    """Name or address, without brackets."""
    port: int
    target: str
    """Path and query, in ASCII."""

    @property
    def authority(self) -> str:
        """Host and, where it is not the scheme's own, port."""
        return _named(self.host) if self.port == _PORTS[self.scheme] else f"{_named(self.host)}:{self.port}"


@dataclass(frozen=True, slots=True)
class File:
    """A file in the folder; nobody has looked yet whether its path leaves it."""

    path: str


@dataclass(frozen=True, slots=True)
class Choice:
    """The images of a product that a model is to see."""

    urls: tuple[str, ...] = ()
    """As the product names them."""
    stamps: tuple[str, ...] = ()
    """Of each, what tells its content: of a file; empty for a URL."""
    refused: tuple[str, ...] = ()
    """Why others are not among them."""
    max_edge: int = 0

    def subject(self, content_hash: str) -> str:
        """What an answer is about: the text and these images. Without images, the text's own hash."""
        if not self.urls:
            return content_hash
        return hashlib.sha256(json.dumps([content_hash, self.max_edge, self.urls, self.stamps]).encode()).hexdigest()


NO_IMAGES = Choice()


class Pictures(BaseModel):
    """What became of a product's images when it was asked."""

    model_config = ConfigDict(extra="forbid")

    sent: list[str] = []
    """The start of the SHA-256 of each that was sent."""
    refused: dict[str, int] = {}
    """Reason → how many of those chosen were not."""


@dataclass(frozen=True, slots=True)
class Taken:
    """The images of a product, read."""

    jpegs: tuple[bytes, ...] = ()
    pictures: Pictures | None = None
    """None where none were to be read."""
    waiting: bool = False
    """Another one may be had later."""


NOTHING = Taken()


def placed(enrich: Enrich, source: str) -> Enrich:
    """`enrich` with the folder of image files as an absolute path. Raises InputError where it is not there."""
    images = enrich.images
    if not images.max_images or not images.folder:
        return enrich
    found = (Path(source) / images.folder).resolve()
    require(found)
    return enrich.model_copy(update={"images": images.model_copy(update={"folder": str(found)})})


def require(folder: Path) -> None:
    """Raise InputError unless the folder of image files is there, on the node that asks."""
    if not folder.is_dir():
        raise InputError(
            f"enrich.images.folder: there is no folder {folder} on {socket.gethostname()}: correct the option, give "
            "every node the folder, or leave the option empty"
        )


def choose(urls: Sequence[str | None] | None, options: Images) -> Choice:
    """The first `max_images` of a product's images that may be read."""
    if not options.max_images:
        return NO_IMAGES
    chosen: dict[str, str] = {}
    refused: list[str] = []
    for url in dict.fromkeys(url for url in urls or () if url):
        try:
            found = place(url, options)
            chosen[url] = _stamp(located(Path(options.folder), found.path)) if isinstance(found, File) else ""
        except Lost as lost:
            refused.append(lost.reason)
        if len(chosen) == options.max_images:
            break
    return Choice(tuple(chosen), tuple(chosen.values()), tuple(refused), options.max_edge)


def located(folder: Path, path: str) -> Path:
    """A plain file below `folder`, links followed. Raises Lost; of a folder that is not mounted, say, as passing."""
    root = folder.resolve()
    try:
        real = (root / path).resolve(strict=True)
    except (OSError, ValueError, RuntimeError) as error:  # the latter two: a NUL character; links in a circle
        require(root)  # on a node without the folder every file would be missing
        if isinstance(error, OSError) and error.errno not in _ABSENT:
            raise Lost("its file cannot be read", passing=True) from None
        raise Lost("there is no such file in enrich.images.folder") from None
    if not real.is_relative_to(root):
        raise Lost("its path leaves enrich.images.folder")
    if not real.is_file():  # a pipe may block for ever
        raise Lost("it is no plain file")
    return real


def _stamp(file: Path) -> str:
    """Hash of a file's size and beginning: two photographs that differ differ there, and a catalogue is soon read."""
    try:
        with file.open("rb") as opened:
            told = hashlib.sha256(str(file.stat().st_size).encode())
            told.update(opened.read(STAMP_BYTES))
    except OSError:
        raise Lost("its file cannot be read", passing=True) from None
    return told.hexdigest()


def place(url: str, options: Images) -> Web | File:
    """What an image's URL or path names. Raises Lost unless it may be read."""
    found = _SCHEME.match(url)
    scheme = "https" if url.startswith("//") else found[1].lower() if found else ""
    if scheme in _PORTS:
        return web(url, options.hosts)
    if scheme not in ("", "file"):
        raise Lost("its URL is neither http, https nor file")
    if not options.folder:
        raise Lost("it is a file, and enrich.images.folder is not set")
    if not scheme:
        return File(url)
    parts = _split(url)
    if parts.netloc not in ("", "localhost"):
        raise Lost("its file: URL names another machine")
    return File(unquote(parts.path))


def web(url: str, hosts: Sequence[str]) -> Web:
    """What an http or https URL names. Raises Lost unless its host is one of `hosts`."""
    parts = _split(url)
    scheme = parts.scheme.lower() or "https"
    if scheme not in _PORTS:
        raise Lost("it redirects to a URL that is neither http nor https")
    if parts.username is not None or parts.password is not None:
        raise Lost("its URL holds a user name or a password")
    try:
        port = parts.port or _PORTS[scheme]
        host = (parts.hostname or "").encode("idna").decode("ascii")
    except ValueError:
        raise Lost("its URL is malformed") from None
    if not admitted(host, port, hosts):
        raise Lost("its host is not in enrich.images.hosts")
    target = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
    return Web(scheme, host, port, quote(target, safe=_KEPT))


def admitted(host: str, port: int, hosts: Sequence[str]) -> bool:
    """Whether the list has the host: with this port, or without one for a usual port."""
    name = _named(host)
    return f"{name}:{port}" in hosts or (name in hosts and port in _PORTS.values())


def _named(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:
        raise Lost("its URL is malformed") from None
