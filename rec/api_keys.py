"""Keys of the HTTP API, from the environment: who may ask, and that nobody may from elsewhere where there are none."""

import hashlib
import hmac
import ipaddress
import os
import re
from dataclasses import dataclass
from pathlib import Path

from rec.errors import ConfigError

KEYS_VARIABLE = "REC_API_KEYS"
RATE_VARIABLE = "REC_RATE_LIMIT"
ORIGINS_VARIABLE = "REC_CORS_ORIGINS"
PUBLIC_RATE = 200.0
"""Requests a second of one key in each replica of the ingress where REC_RATE_LIMIT says nothing. It bounds
gross floods cheaply: they are refused before their bodies are read. It is no fairness between keys: a replica answers
fewer than that, so one key below it can fill the queue before the others. For that set REC_RATE_LIMIT to a part of what
a replica answers. A server on loopback that has keys gets it as well; one without keys has no limit."""

_KEY = re.compile(r"[!-+\--~]{16,200}")  # printable ASCII without space and comma
_HOST = re.compile(r"(\[[^\[\]]*\]|[^:\[\]]*)(:[0-9]*)?")  # address or name, port
_ORIGIN = re.compile(r"https?://[A-Za-z0-9.\-\[\]:]+")


@dataclass(frozen=True, slots=True)
class Access:
    """Who may ask, how often, and from which pages."""

    keys: tuple[bytes, ...]
    """SHA-256 of each, so that neither a log nor a traceback can hold one. Empty: nobody needs one."""
    rate: float | None
    """Requests a second of one key in each replica of the ingress; None: no limit."""
    origins: tuple[str, ...]
    """Pages of these origins may ask from a browser; empty: those of the server alone."""

    def key(self, given: str | None) -> int | None:
        """Which of the keys `given` is; None when it is none. Takes the same time whatever it is."""
        digest = _digest(given or "")
        found = None
        for at, key in enumerate(self.keys):
            if hmac.compare_digest(digest, key):
                found = at
        return found


def access() -> Access:
    """What the environment says. Raises ConfigError for a value that says nothing.

    REC_API_KEYS is a comma-separated list of keys, or `@` and the path of a file with a key a line. REC_RATE_LIMIT is
    a number of requests a second; unset, PUBLIC_RATE where there are keys. REC_CORS_ORIGINS is a comma-separated list
    as `https://shop.example`.
    """
    found = tuple(map(_digest, keys()))
    return Access(found, _rate(os.environ.get(RATE_VARIABLE, ""), PUBLIC_RATE if found else None), _origins())


def check_bind(host: str, found: Access) -> None:
    """Raise ConfigError where a server on `host` can be reached from elsewhere and asks for no key."""
    if not found.keys and not is_loopback(host):
        raise ConfigError(
            f"the API would answer anybody who reaches {host}: set {KEYS_VARIABLE} to keys of 16 characters or more, "
            "or bind 127.0.0.1"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server on `host`; a name other than localhost may be any address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def is_loopback_header(given: str) -> bool:
    """Whether a Host header, with a port or without, is an address of this machine alone, or localhost."""
    found = _HOST.fullmatch(given)
    return found is not None and is_loopback(found[1].lower())


def keys() -> tuple[str, ...]:
    """The keys that REC_API_KEYS holds, as they are sent. Raises ConfigError for a value that says nothing."""
    given, where = os.environ.get(KEYS_VARIABLE, ""), KEYS_VARIABLE
    if given.startswith("@"):
        path = Path(given[1:])
        try:
            given, where = path.read_text(encoding="ascii").replace("\n", ","), str(path)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{KEYS_VARIABLE} names {path}, which is no file of keys ({error})") from None
        if not given.strip(", \r"):
            raise ConfigError(f"{KEYS_VARIABLE} names {path}, which has no key: write one a line, or unset it")
    found = [key.strip() for key in given.split(",") if key.strip()]
    for at, key in enumerate(found):
        if not _KEY.fullmatch(key):
            raise ConfigError(
                f"key {at + 1} of {where} must be 16 to 200 characters of ASCII without space and comma: make one "
                "with `python -c 'import secrets; print(secrets.token_urlsafe(32))'`"
            )
    return tuple(dict.fromkeys(found))


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def _rate(given: str, usual: float | None) -> float | None:
    if not given:
        return usual
    try:
        rate = float(given)
    except ValueError:
        rate = 0.0
    if not 0 < rate < float("inf"):
        raise ConfigError(f"{RATE_VARIABLE} is {given!r}: give the requests a second of one key, as 20, or unset it")
    return rate


def _origins() -> tuple[str, ...]:
    given = [each.strip() for each in os.environ.get(ORIGINS_VARIABLE, "").split(",") if each.strip()]
    for origin in given:
        if not _ORIGIN.fullmatch(origin):
            raise ConfigError(f"{ORIGINS_VARIABLE} has {origin!r}: give origins as https://shop.example, no path, no *")
    return tuple(given)
