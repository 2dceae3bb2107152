"""The S3 server of the tests as the oracle sees it: its access log, and reads that go past the proxy that logs."""

from __future__ import annotations

import datetime
import hashlib
import hmac
import http.client
import json
import urllib.parse
import xml.etree.ElementTree as xml
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from s3server import BUCKET, REGION, S3Server


@dataclass(frozen=True)
class Put:
    """A write that the server answered with success, and when it did."""

    key: str
    time: float


class Server:
    """A running server; `down` and `up` are an outage."""

    bucket = BUCKET

    def __init__(self, folder: Path) -> None:
        self._server = S3Server(folder)
        self.env = self._server.environ()
        self.env |= {"AWS_EC2_METADATA_DISABLED": "true"}
        self.down, self.up, self.close = self._server.down, self._server.up, self._server.stop

    def puts(self, prefix: str, position: int = 0) -> tuple[list[Put], int]:
        """Writes below a prefix that the log has from a position on, and the position to go on from."""
        found = []
        with self._server.access_log.open("rb") as log:
            log.seek(position)
            for raw in log:
                if not raw.endswith(b"\n"):
                    break
                position += len(raw)
                line = json.loads(raw)
                key = line["key"].removeprefix(f"{BUCKET}/")
                if line["method"] == "PUT" and line["status"] == 200 and key.startswith(prefix):
                    found.append(Put(key, line["t"] + line["ms"] / 1000))
        return found, position

    def keys(self, prefix: str) -> list[str]:
        """All keys below a prefix."""
        return sorted(self._list(prefix))

    def get(self, key: str) -> bytes | None:
        """An object, or none if there is none."""
        status, body = self._request(f"/{BUCKET}/{key}", {})
        if status not in (200, 404):
            raise OSError(f"GET {key}: {status} {body[:200]!r}")
        return body if status == 200 else None

    def _list(self, prefix: str) -> Iterator[str]:
        more: dict[str, str] = {}
        while True:
            status, body = self._request(f"/{BUCKET}", {"list-type": "2", "prefix": prefix, **more})
            if status != 200:
                raise OSError(f"list {prefix}: {status} {body[:200]!r}")
            page = xml.fromstring(body)
            names = {"s3": page.tag.partition("}")[0].lstrip("{")}
            for key in page.iterfind("s3:Contents/s3:Key", names):
                yield key.text or ""
            following = page.findtext("s3:NextContinuationToken", None, names)
            if page.findtext("s3:IsTruncated", "false", names) != "true" or not following:
                return
            more = {"continuation-token": following}

    def _request(self, path: str, query: dict[str, str]) -> tuple[int, bytes]:
        """One GET with an AWS signature, version 4."""
        state = self._server.state
        port, digest = state["ports"]["s3"], hashlib.sha256(b"").hexdigest()
        now = datetime.datetime.now(datetime.timezone.utc)
        stamp, day = now.strftime("%Y%m%dT%H%M%SZ"), now.strftime("%Y%m%d")
        host, names = f"127.0.0.1:{port}", "host;x-amz-content-sha256;x-amz-date"
        path = urllib.parse.quote(path)
        text = urllib.parse.urlencode(sorted(query.items()), quote_via=urllib.parse.quote, safe="")
        headers = f"host:{host}\nx-amz-content-sha256:{digest}\nx-amz-date:{stamp}\n"
        canonical = f"GET\n{path}\n{text}\n{headers}\n{names}\n{digest}"
        scope = f"{day}/{REGION}/s3/aws4_request"
        to_sign = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
        key = ("AWS4" + state["admin"]["secret_key"]).encode()
        for part in (day, REGION, "s3", "aws4_request"):
            key = hmac.new(key, part.encode(), hashlib.sha256).digest()
        signature = hmac.new(key, to_sign.encode(), hashlib.sha256).hexdigest()
        credential = f"Credential={state['admin']['access_key']}/{scope}"
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        try:
            connection.request(
                "GET",
                f"{path}?{text}" if text else path,
                headers={
                    "x-amz-date": stamp,
                    "x-amz-content-sha256": digest,
                    "Authorization": f"AWS4-HMAC-SHA256 {credential}, SignedHeaders={names}, Signature={signature}",
                },
            )
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()
