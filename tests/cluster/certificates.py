"""Certificates that nothing of daskade issued."""

from __future__ import annotations

import subprocess
from pathlib import Path


def make(folder: Path, name: str, version: int = 1) -> None:
    """An authority, and a certificate that it signed; without extensions openssl makes one of version 1."""

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    openssl("req", "-x509", *curve, "-keyout", "ca.key", "-out", "ca.crt", "-days", "2", "-subj", f"/CN={name}")
    openssl("req", *curve, "-keyout", "tls.key", "-out", "tls.csr", "-subj", "/CN=dask")
    signed = ["-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "1", "-out", "tls.crt"]
    (folder / "extensions").write_text("keyUsage=digitalSignature")
    extensions = ["-extfile", "extensions"] if version == 3 else []
    openssl("x509", "-req", "-in", "tls.csr", *signed, *extensions)
