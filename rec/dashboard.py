"""What the dashboard of a Ray head says of its cluster, asked as `ray job submit` asks it."""

import http.client
import json
import urllib.request
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from rec import certificates
from rec.errors import ConfigError

_MOST = 65_536
"""Bytes of an answer that are read."""
_NAME = "name the head's, as http://HEAD:8265"


def version(address: str, token: str | None, *, wait_s: float) -> str:
    """Ray's version at `address` (http:// or https://), which is told `token` where there is one.

    Raises ConfigError where nothing answers within `wait_s` seconds, the token is not taken, or what answers is no
    dashboard.
    """
    parts = urlsplit(address)
    shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
    asked = urllib.request.Request(f"{shown}/api/version")
    if token:
        asked.add_unredirected_header("Authorization", f"Bearer {token}")  # who answers may send us on, but not it
    try:
        with urllib.request.urlopen(asked, timeout=wait_s) as answer:
            return str(json.loads(answer.read(_MOST))["ray_version"])
    except HTTPError as error:
        if error.code in (401, 403):
            said = "does not take this token" if token else "asks for a token, and there is none"
            remedy = "set RAY_AUTH_TOKEN to the cluster's, or write it into the file RAY_AUTH_TOKEN_PATH"
            raise ConfigError(f"{shown} {said} ({error.code}): {remedy}") from None
        raise ConfigError(f"{shown} is no dashboard of Ray's ({error.code}): {_NAME}") from None
    except (OSError, http.client.HTTPException) as error:
        reason = error.reason if isinstance(error, URLError) and isinstance(error.reason, OSError) else error
        why = certificates.fault(reason) or getattr(reason, "strerror", None) or type(reason).__name__
        remedy = "check address, network policy and that the head runs"
        raise ConfigError(f"{shown} does not answer ({why}): {remedy}") from None
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{shown} is no dashboard of Ray's: {_NAME}") from None
