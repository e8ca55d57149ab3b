"""Why a server's certificate is not accepted: HTTP clients say it deep within what they raise, libpq not at all."""

import socket
import ssl

SSL_REQUEST = (8).to_bytes(4, "big") + (80_877_103).to_bytes(4, "big")
"""What a client of Postgres asks for TLS with; `S` is yes."""
WAIT_S = 5.0


def fault(error: BaseException) -> str | None:
    """OpenSSL's reason, such as `certificate has expired`, where an error comes of a certificate; else None."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, ssl.SSLCertVerificationError):
            return found.verify_message
        found = found.__cause__ or found.__context__
    return None


def fault_of_postgres(host: str, port: int, trusted: str) -> str | None:
    """OpenSSL's reason against the certificate that the server shows; None where there is none, or none is shown.

    `trusted`: libpq's sslrootcert, a file or `system`. Whether the certificate has the server's name is not looked at,
    libpq says that itself.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    try:
        if trusted == "system":
            context.load_default_certs()
        else:
            context.load_verify_locations(trusted)
        with socket.create_connection((host, port), WAIT_S) as plain:
            plain.sendall(SSL_REQUEST)
            if plain.recv(1) == b"S":
                context.wrap_socket(plain).close()
    except OSError as error:
        return fault(error)
    return None
