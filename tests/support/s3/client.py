"""A small S3 client that shares no code with the product: the standard library and AWS signatures, version 4."""

from __future__ import annotations

import hashlib
import hmac
import http.client
import time
import urllib.parse
from dataclasses import dataclass
from datetime import datetime
from xml.etree import ElementTree

REGION = "us-east-1"


@dataclass(frozen=True)
class S3Client:
    """One identity at one server. What goes wrong on the way is an `OSError`."""

    endpoint: str
    key: str
    secret: str

    def request(
        self, method: str, path: str, query: dict[str, str] | None = None, body: bytes = b"", patience: float = 30
    ) -> tuple[int, bytes]:
        """Status and body of the answer."""
        host, path = self.endpoint.removeprefix("http://"), urllib.parse.quote(path)
        asked = urllib.parse.urlencode(sorted((query or {}).items()), quote_via=urllib.parse.quote, safe="")
        headers = self._signed(method, host, path, asked, hashlib.sha256(body).hexdigest())
        connection = http.client.HTTPConnection(host, timeout=patience)
        try:
            connection.request(method, f"{path}?{asked}" if asked else path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except http.client.HTTPException as error:
            raise OSError(f"{method} {path}: {error!r}") from error
        finally:
            connection.close()

    def read(self, bucket: str, key: str) -> bytes | None:
        """One object, or none if there is none."""
        status, body = self.request("GET", f"/{bucket}/{key}")
        if status not in (200, 404):
            raise OSError(f"GET {key}: {status} {body[:200]!r}")
        return body if status == 200 else None

    def written(self, bucket: str, prefix: str) -> dict[str, float]:
        """Keys below a prefix in their order, with the time of each one's writing by the server's clock, in seconds since 1970,
        cut to what it tells. Empty also where the bucket does not exist yet.
        """
        found: dict[str, float] = {}
        more: dict[str, str] = {}
        while True:
            status, body = self.request("GET", f"/{bucket}", {"list-type": "2", "prefix": prefix, **more})
            if status == 404:
                return found
            if status != 200:
                raise OSError(f"list {prefix}: {status} {body[:200]!r}")
            page = ElementTree.fromstring(body)
            for entry in page.iterfind("{*}Contents"):
                at = datetime.fromisoformat(str(entry.findtext("{*}LastModified")).replace("Z", "+00:00"))
                found[str(entry.findtext("{*}Key"))] = at.timestamp()
            following = page.findtext("{*}NextContinuationToken")
            if not following:
                return found
            more = {"continuation-token": following}

    def _signed(self, method: str, host: str, path: str, query: str, digest: str) -> dict[str, str]:
        """The headers of a request whose body has this digest."""
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        scope = f"{stamp[:8]}/{REGION}/s3/aws4_request"
        names = "host;x-amz-content-sha256;x-amz-date"
        lines = f"host:{host}\nx-amz-content-sha256:{digest}\nx-amz-date:{stamp}\n"
        canonical = f"{method}\n{path}\n{query}\n{lines}\n{names}\n{digest}"
        text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
        signer = f"AWS4{self.secret}".encode()
        for part in (*scope.split("/"), text):
            signer = hmac.new(signer, part.encode(), hashlib.sha256).digest()
        return {
            "x-amz-date": stamp,
            "x-amz-content-sha256": digest,
            "Authorization": f"AWS4-HMAC-SHA256 Credential={self.key}/{scope}, SignedHeaders={names}, "
            f"Signature={signer.hex()}",
        }
