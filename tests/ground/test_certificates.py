"""A server's certificate that has expired, or that nobody vouches for: said by its reason, with a remedy, at once."""

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from rec import certificates, doctor, postgres
from rec.errors import DatabaseError
from tests.certificate import certificate

OK = b"R" + (8).to_bytes(4, "big") + bytes(4)
"""Postgres' AuthenticationOk."""


@contextmanager
def postgres_with(key: Path, signed: Path) -> Iterator[int]:
    """The port of what answers `S` to a wish for TLS, shows the certificate, lets whoever takes it in, and hangs up."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(signed, key)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            with suppress(OSError):  # the listener is closed
                while True:
                    plain, _ = listener.accept()
                    with plain, suppress(OSError):  # a client that does not accept the certificate
                        assert plain.recv(8) == certificates.SSL_REQUEST
                        plain.sendall(b"S")
                        with context.wrap_socket(plain, server_side=True) as secret:
                            secret.recv(1_024)
                            secret.sendall(OK)

        server = threading.Thread(target=answer)
        server.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        server.join()


def url(port: int, trusted: Path | str) -> str:
    return f"postgresql://shop:hunter2@localhost:{port}/shop?sslmode=verify-full&sslrootcert={trusted}"


def test_an_expired_certificate_of_postgres_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, signed = certificate("localhost", tmp_path, days=-1)
    with postgres_with(key, signed) as port:
        with pytest.raises(DatabaseError) as refused:
            postgres.connect(url(port, signed))
        monkeypatch.setenv(postgres.URL_VARIABLE, url(port, signed))
        found, _ = doctor.database(tmp_path)
    assert str(refused.value) == (
        f"the certificate of Postgres at localhost:{port} is not accepted (certificate has expired): renew it, or name "
        "in REC_DATABASE_URL the authority that signed it, as sslrootcert=/path/ca.pem"
    )
    assert (found.state, f"{found.found}: {found.remedy}") == ("fail", str(refused.value))


def test_a_certificate_of_an_unknown_authority_is_named(tmp_path: Path) -> None:
    key, signed = certificate("localhost", tmp_path)
    with postgres_with(key, signed) as port, pytest.raises(DatabaseError, match=r"not accepted \(self-signed cert"):
        postgres.connect(url(port, "system"))


def test_who_is_trusted_is_not_blamed(tmp_path: Path) -> None:
    key, signed = certificate("localhost", tmp_path)
    with postgres_with(key, signed) as port, pytest.raises(DatabaseError, match=r"does not answer .* REC_DATABASE_URL"):
        postgres.connect(url(port, signed))
