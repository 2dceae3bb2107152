"""An authority, and one certificate for everybody, as Dask takes them."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Certificates:
    ca: Path
    cert: Path
    key: Path

    def options(self) -> list[str]:
        """Words of Dask's command line."""
        return ["--tls-ca-file", str(self.ca), "--tls-cert", str(self.cert), "--tls-key", str(self.key)]

    def context(self) -> ssl.SSLContext:
        """For a client."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.load_verify_locations(self.ca)
        context.load_cert_chain(self.cert, self.key)
        return context


def certificates(folder: Path) -> Certificates:
    """Made anew."""
    import trustme

    made = Certificates(*(folder / f"{name}.pem" for name in ("ca", "cert", "key")))
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    authority.cert_pem.write_to_path(str(made.ca))
    for blob in certificate.cert_chain_pems:
        blob.write_to_path(str(made.cert), append=True)
    certificate.private_key_pem.write_to_path(str(made.key))
    return made
