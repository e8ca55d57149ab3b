"""TCP ports of this machine: whether one can be had, and which are open to other machines."""

import ipaddress
import socket
from collections.abc import Iterable

import psutil


def refused(host: str, port: int) -> OSError | None:
    """Why a server could not listen at `port` of `host`; None when it could."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error
    return None


def public(ports: Iterable[int]) -> dict[int, str]:
    """Those of `ports` at which something listens beyond loopback, with the address it listens at."""
    wanted = set(ports)
    return {
        connection.laddr.port: connection.laddr.ip
        for connection in psutil.net_connections(kind="tcp")
        if connection.status == psutil.CONN_LISTEN
        and connection.laddr.port in wanted
        and not ipaddress.ip_address(connection.laddr.ip).is_loopback
    }


def free() -> int:
    """A port of 127.0.0.1 that nothing listens at now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
