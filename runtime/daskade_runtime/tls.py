"""Certificates that are replaced while Dask runs: new connections use the new ones, those that exist stay."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import ssl
import time
import weakref
from typing import Any

from distributed import Security

log = logging.getLogger("distributed.daskade")

LOOK = 2.0
_FILES = ("ca.crt", "tls.crt", "tls.key")


class Certificates(Security):
    """Dask's security with the files of a folder: ``ca.crt``, ``tls.crt``, ``tls.key``.

    Keeps every TLS context that was made from it: those of listeners, of connection pools, of clients inside
    of tasks. ``reload`` changes them in place, since Dask takes no other contexts once it runs.
    """

    def __init__(self, folder: str) -> None:
        ca, cert, key = (os.path.join(folder, name) for name in _FILES)
        roles = ("scheduler", "worker", "client")
        super().__init__(
            require_encryption=True,
            tls_ca_file=ca,
            **{f"tls_{role}_cert": cert for role in roles},
            **{f"tls_{role}_key": key for role in roles},
        )
        self._folder = folder
        self._contexts: weakref.WeakSet[ssl.SSLContext] = weakref.WeakSet()

    def _get_tls_context(self, tls: Any, purpose: Any) -> Any:
        context = super()._get_tls_context(tls, purpose)
        if context is not None:
            self._contexts.add(context)
        return context

    def stamp(self) -> tuple[Any, ...]:
        """Differs when the files do."""
        stats = [os.stat(os.path.join(self._folder, name)) for name in _FILES]
        return tuple((stat.st_mtime_ns, stat.st_ino, stat.st_size) for stat in stats)

    def reload(self) -> dict[str, Any]:
        """Puts the files into use, and describes the certificate. Authorities are added, never taken away.

        Raises ``OSError`` (``ssl.SSLError`` is one), and changes nothing, if they do not fit together.
        """
        # Kubernetes replaces all files of a volume at once, by a symbolic link to another folder: in that
        # folder they belong together, whatever the link says a moment later.
        folder = os.path.dirname(os.path.realpath(os.path.join(self._folder, "tls.crt")))
        if not all(os.path.exists(os.path.join(folder, name)) for name in _FILES):
            folder = self._folder
        ca, cert, key = (os.path.join(folder, name) for name in _FILES)
        described = describe(cert)
        for context in [ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), *self._contexts]:
            context.load_verify_locations(ca)
            context.load_cert_chain(cert, key)
        return described


def describe(path: str) -> dict[str, Any]:
    """Of the first certificate of a file: SHA-256 of its DER form, and its end in seconds since 1970."""
    with open(path) as file:
        text = file.read()
    end = "-----END CERTIFICATE-----"
    at = text.find(end)
    try:
        der = ssl.PEM_cert_to_DER_cert(text[text.index("-----BEGIN") : at + len(end)])
        # Only this private function of the standard library parses a certificate without a connection.
        decoded: Any = ssl._ssl._test_decode_cert(path)  # type: ignore[attr-defined]
        ends = float(ssl.cert_time_to_seconds(decoded["notAfter"]))
    except (ValueError, KeyError) as error:
        raise ssl.SSLError(f"{path} holds no certificate in PEM form: {error}") from None
    return {"fingerprint": hashlib.sha256(der).hexdigest(), "expires": ends}


async def keep_fresh(server: Any, certificates: Certificates) -> None:
    """Watches the files for as long as the server lives, and tells of the certificate in use:
    ``server._daskade_certificate``, and a worker's metrics, which travel with its heartbeats.
    """
    known: Any = None  # the first look loads them again: they may have changed since the server read them
    while True:
        try:
            now = certificates.stamp()
            if now != known:
                tell(server, certificates.reload())
                if known is not None:
                    left = server._daskade_certificate["expires"] - time.time()
                    log.info("daskade: new certificates are in use, for %.0f s", left)
                known = now
        except OSError as error:  # half replaced: a later look finds them whole
            log.warning("daskade: the certificates cannot be loaded, those before stay in use: %s", error)
        await asyncio.sleep(LOOK)


def tell(server: Any, described: dict[str, Any]) -> None:
    """Makes the certificate in use known: see ``keep_fresh``."""
    server._daskade_certificate = described
    metrics = getattr(server, "metrics", None)
    if isinstance(metrics, dict):
        metrics["daskade_certificate"] = lambda worker: worker._daskade_certificate["fingerprint"]
