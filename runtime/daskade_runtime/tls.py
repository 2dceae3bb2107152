"""Certificates that are replaced while Dask runs: new connections use the new ones, those that exist stay."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import ssl
import time
from collections.abc import Iterator
from typing import Any

log = logging.getLogger("distributed.daskade")

LOOK = 2.0
_FILES = ("ca.crt", "tls.crt", "tls.key")


def contexts(server: Any) -> Iterator[ssl.SSLContext]:
    """Every context that a Dask server, and what belongs to it, makes connections with or accepts them."""
    seen: set[int] = set()
    owners = [server, getattr(server, "rpc", None), getattr(server, "_daskade_client", None)]
    runtime = getattr(server, "_daskade", None)
    client = getattr(runtime, "client", None)
    owners += [client, getattr(client, "rpc", None), getattr(client, "scheduler", None)]
    for owner in owners:
        for holder in (getattr(owner, "connection_args", None), getattr(owner, "_listen_args", None)):
            if isinstance(holder, dict):
                yield from _new(seen, holder.get("ssl_context"))
    for listener in getattr(server, "listeners", ()):
        for holder in (getattr(listener, "server_args", None), getattr(listener, "listen_args", None)):
            if isinstance(holder, dict):
                yield from _new(seen, holder.get("ssl_context"))
        tcp = getattr(listener, "tcp_server", None)
        yield from _new(seen, getattr(tcp, "ssl_options", None))


def _new(seen: set[int], context: Any) -> Iterator[ssl.SSLContext]:
    if isinstance(context, ssl.SSLContext) and id(context) not in seen:
        seen.add(id(context))
        yield context


def fingerprint(folder: str) -> str | None:
    """SHA-256 of the leaf certificate in DER form; None while it cannot be read."""
    try:
        with open(os.path.join(folder, "tls.crt")) as file:
            text = file.read()
        end = "-----END CERTIFICATE-----"
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(text[: text.index(end) + len(end)])).hexdigest()
    except (OSError, ValueError):
        return None


def expires(folder: str) -> float | None:
    """Seconds since 1970 at which the certificate ends."""
    try:
        decoded: Any = ssl._ssl._test_decode_cert(os.path.join(folder, "tls.crt"))  # type: ignore[attr-defined]
        return float(ssl.cert_time_to_seconds(decoded["notAfter"]))
    except (OSError, ValueError, KeyError, AttributeError):
        return None


def _stamp(folder: str) -> tuple[Any, ...]:
    return tuple(os.stat(os.path.join(folder, name)).st_mtime_ns for name in _FILES)


def reload(server: Any, folder: str) -> None:
    """Loads the files into the contexts in use. Authorities are added, never taken away."""
    ca, cert, key = (os.path.join(folder, name) for name in _FILES)
    for context in contexts(server):
        context.load_cert_chain(cert, key)
        context.load_verify_locations(ca)


async def keep_fresh(server: Any, folder: str) -> None:
    """Watches the files for as long as the server lives."""
    known = _stamp(folder)
    _tell(server, folder)
    while True:
        await asyncio.sleep(LOOK)
        try:
            now = _stamp(folder)
            if now == known:
                continue
            reload(server, folder)
        except (OSError, ssl.SSLError) as error:  # half replaced: the next look finds them whole
            log.debug("daskade: certificates in %s cannot be loaded: %s", folder, error)
            continue
        known = now
        _tell(server, folder)
        left = (expires(folder) or time.time()) - time.time()
        log.info("daskade: new certificates are in use, for %.0f s", left)


def _tell(server: Any, folder: str) -> None:
    told = {"fingerprint": fingerprint(folder) or "", "expires": expires(folder) or 0.0}
    server._daskade_certificate = told
    # A worker's heartbeat carries its metrics to the scheduler.
    metrics = getattr(server, "metrics", None)
    if isinstance(metrics, dict):
        metrics["daskade_certificate"] = lambda worker: worker._daskade_certificate["fingerprint"]
