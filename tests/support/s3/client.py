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

from support.waiting import until

REGION = "us-east-1"


@dataclass(frozen=True)
class Answer:
    """What the server said; the version is that of an object."""

    status: int
    body: bytes
    version: str | None

    def expect(self, *wanted: int) -> Answer:
        """Itself, or an `OSError` with any other status."""
        if self.status not in wanted:
            raise OSError(f"the S3 server answered {self.status}: {self.body[:300]!r}")
        return self


@dataclass(frozen=True)
class S3Client:
    """One identity at one server. What goes wrong on the way is an `OSError`."""

    endpoint: str
    key: str
    secret: str

    def request(
        self, method: str, path: str, query: dict[str, str] | None = None, body: bytes = b"", patience: float = 30
    ) -> Answer:
        """One signed request, to the path of a bucket or of an object."""
        host, path = self.endpoint.removeprefix("http://"), urllib.parse.quote(path)
        asked = urllib.parse.urlencode(sorted((query or {}).items()), quote_via=urllib.parse.quote, safe="")
        headers = self._signed(method, host, path, asked, hashlib.sha256(body).hexdigest())
        connection = http.client.HTTPConnection(host, timeout=patience)
        try:
            connection.request(method, f"{path}?{asked}" if asked else path, body, headers)
            answer = connection.getresponse()
            return Answer(answer.status, answer.read(), answer.getheader("x-amz-version-id"))
        except http.client.HTTPException as error:
            raise OSError(f"{method} {path}: {error!r}") from error
        finally:
            connection.close()

    def read(self, bucket: str, key: str) -> bytes | None:
        """One object, or none if there is none."""
        answer = self.request("GET", f"/{bucket}/{key}").expect(200, 404)
        return answer.body if answer.status == 200 else None

    def put(self, bucket: str, key: str, data: bytes) -> str | None:
        """Writes an object; its version, if the bucket keeps versions."""

        def written() -> Answer | None:
            answer = self.request("PUT", f"/{bucket}/{key}", body=data)
            # A server that has no volume for the bucket yet refuses the first writes.
            return None if answer.status >= 500 else answer.expect(200)

        answer: Answer = until(f"{key} is written", written, 60)
        return answer.version

    def delete(self, bucket: str, key: str) -> None:
        self.request("DELETE", f"/{bucket}/{key}").expect(204)

    def written(self, bucket: str, prefix: str) -> dict[str, float]:
        """Keys below a prefix in their order, with the time of each one's writing by the server's clock, in seconds since 1970,
        cut to what it tells. Empty also where the bucket does not exist yet.
        """
        found: dict[str, float] = {}
        more: dict[str, str] = {}
        while True:
            answer = self.request("GET", f"/{bucket}", {"list-type": "2", "prefix": prefix, **more}).expect(200, 404)
            if answer.status == 404:
                return found
            page = ElementTree.fromstring(answer.body)
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
