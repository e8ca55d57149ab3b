"""Images over HTTP, from hosts that the recipe lists and from nowhere else.

A URL in product data is a stranger's wish. Every hop of a redirect must name a listed host. A name is looked up once
for a connection, all of its addresses must be public, and the connection goes to one of those very addresses: what the
name means a moment later changes nothing. The check stands where the socket is opened, so that no connection can be
made around it. One deadline holds for look-up, connection, TLS, headers, redirects and body together, and the body ends
with the byte that is too many, whatever its header promised. No proxy, cookie, credential or compression is in use.
"""

import ipaddress
import socket
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urljoin

import httpcore

from rec import __version__
from rec.config import Images
from rec.enrich.places import Lost, admitted, web

_REDIRECTS = {301, 302, 303, 307, 308}
_PASSING = {408, 425, 429, 500, 502, 503, 504}
"""Statuses that may be another one later."""
_HEADERS = (
    ("User-Agent", f"shop-rec/{__version__}"),
    ("Accept", "image/jpeg, image/png, image/webp, image/gif"),
    ("Accept-Encoding", "identity"),
)
_TYPES = ("image/", "application/octet-stream", "binary/octet-stream")
"""What a host may call an image; whether it is one is seen when it is decoded."""
_LATE = "it took longer than enrich.images.timeout_s"
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_UNICAST = ipaddress.IPv6Network("2000::/3")
_LOOKUPS = 8
"""Names that are looked up at once; the system sets no limit to how long one takes."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def is_public(address: Address) -> bool:
    """Whether an address is one of the open Internet's; of one that stands for an IPv4 address, whether that is."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
        if address not in _UNICAST:
            return False
    return address.is_global and not (address.is_multicast or address.is_reserved)


class Fetcher:
    """Gets images. `get` may be called by many threads."""

    def __init__(self, options: Images) -> None:
        self._options = options
        self._tls = httpcore.default_ssl_context()
        self._lookups = ThreadPoolExecutor(_LOOKUPS, "lookup")

    def get(self, url: str) -> bytes:
        """The body that `url` leads to. Raises Lost."""
        options = self._options
        guard = _Guard(options.hosts, time.monotonic() + options.timeout_s, self._lookups)
        try:
            with httpcore.ConnectionPool(self._tls, network_backend=guard, max_keepalive_connections=0) as pool:
                for _ in range(options.max_redirects + 1):
                    place = web(url, options.hosts)
                    to = httpcore.URL(
                        scheme=place.scheme.encode(),
                        host=place.host.encode(),
                        port=place.port,
                        target=place.target.encode(),
                    )
                    with pool.stream("GET", to, headers=[("Host", place.authority), *_HEADERS]) as response:
                        said = {name.lower(): value.decode("utf-8", "replace") for name, value in response.headers}
                        if response.status not in _REDIRECTS or b"location" not in said:
                            return self._body(response, said)
                    url = _joined(url, said[b"location"])
        except httpcore.TimeoutException:
            raise Lost(_LATE, passing=True) from None
        except (httpcore.NetworkError, httpcore.ProtocolError) as error:
            raise Lost(f"its host gives no answer ({type(error).__name__})", passing=True) from None
        raise Lost("it is redirected more often than enrich.images.max_redirects")

    def _body(self, response: httpcore.Response, headers: dict[bytes, str]) -> bytes:
        most = self._options.max_bytes
        if response.status != 200:
            raise Lost(f"its host answers with status {response.status}", passing=response.status in _PASSING)
        if not headers.get(b"content-type", _TYPES[0]).strip().lower().startswith(_TYPES):
            raise Lost("its host says that it is no image")
        if headers.get(b"content-encoding", "identity").strip().lower() != "identity":
            raise Lost("its host sends it compressed")
        length = headers.get(b"content-length", "")
        body = bytearray()
        if not length.isdecimal() or int(length) <= most:
            for chunk in response.iter_stream():
                body += chunk
                if len(body) > most:
                    break
            else:
                return bytes(body)
        raise Lost("it has more than enrich.images.max_bytes")


def _joined(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError:
        raise Lost("it redirects to a malformed URL") from None


class _Guard(httpcore.NetworkBackend):
    """Opens connections to listed hosts at public addresses, until the deadline."""

    def __init__(self, hosts: list[str], deadline: float, lookups: ThreadPoolExecutor) -> None:
        self._hosts = hosts
        self._deadline = deadline
        self._lookups = lookups
        self._network = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        if not admitted(host, port, self._hosts):
            raise Lost("its host is not in enrich.images.hosts")
        failure: httpcore.ConnectError | None = None
        for address in self._addresses(host, port):
            try:
                made = self._network.connect_tcp(
                    address, port, left(self._deadline), local_address, socket_options or ()
                )
            except httpcore.ConnectError as error:
                failure = error
            else:
                return _Timed(made, self._deadline)
        assert failure is not None  # a name has an address, or the look-up fails
        raise failure

    def _addresses(self, host: str, port: int) -> list[str]:
        """What may be connected to: an address that is listed itself, or all public addresses of a listed name."""
        try:
            return [str(ipaddress.ip_address(host))]
        except ValueError:
            pass  # a name
        try:
            looked = self._lookups.submit(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
            found = looked.result(left(self._deadline))
        except TimeoutError:
            raise Lost(_LATE, passing=True) from None
        except OSError:
            raise Lost("its host is not known to the name service", passing=True) from None
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        if not all(is_public(ipaddress.ip_address(address)) for address in addresses):
            raise Lost("its host has a private address")
        return addresses


class _Timed(httpcore.NetworkStream):
    """A connection whose every read and write ends with the deadline."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: float) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, left(self._deadline))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, left(self._deadline))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _Timed(self._stream.start_tls(ssl_context, server_hostname, left(self._deadline)), self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def left(deadline: float) -> float:
    """Seconds until the deadline. Raises httpcore's TimeoutException when there are none."""
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise httpcore.ReadTimeout("the deadline has passed")
    return seconds
