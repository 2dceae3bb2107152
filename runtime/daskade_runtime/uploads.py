"""Uploads in parts that nobody finishes any more, on S3: found by their prefix, and aborted.

The library that stores objects cannot list uploads. So this speaks S3 itself, with the keys that the library was
given; where it finds its own (a web identity, an instance), nothing is aborted.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import html
import http.client
import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any
from urllib.parse import quote, urlsplit

TIMEOUT = 30.0
# Of a listing, and how many listings: more is left for the next time.
ANSWER = 4 << 20
PAGES = 50
_UPLOAD = re.compile(r"<Upload>.*?<Key>(.*?)</Key>.*?<UploadId>(.*?)</UploadId>", re.DOTALL)
_NEXT = re.compile(r"<Next(KeyMarker|UploadIdMarker)>(.*?)</Next")


@dataclass(frozen=True)
class Service:
    """A bucket, as requests reach it: ``url`` is that of the bucket."""

    url: str
    region: str
    keys: Callable[[], dict[str, Any]]
    authority: str | None


def service(
    bucket: str, config: dict[str, Any], keys: Callable[[], dict[str, Any]] | None, authority: str | None
) -> Service | None:
    """The service of a store of the library with this configuration, if the keys are known."""
    if keys is None:
        return None
    region, endpoint = config["region"], config.get("endpoint")
    if config.get("virtual_hosted_style_request"):
        return Service(endpoint or f"https://{bucket}.s3.{region}.amazonaws.com", region, keys, authority)
    return Service(f"{endpoint or f'https://s3.{region}.amazonaws.com'}/{bucket}", region, keys, authority)


def abort(bucket: Service, prefix: str) -> int:
    """Aborts the uploads below ``prefix``; how many. What the service refuses stays."""
    count = 0
    query = {"uploads": "", "prefix": prefix}
    for _ in range(PAGES):
        status, answer = _ask(bucket, "GET", "", query)
        if status != 200:
            return count
        for key, upload in _UPLOAD.findall(answer):
            key = html.unescape(key)
            if key.startswith(prefix):
                count += _ask(bucket, "DELETE", f"/{key}", {"uploadId": html.unescape(upload)})[0] == 204
        if "<IsTruncated>true</IsTruncated>" not in answer:
            return count
        markers = {"KeyMarker": "key-marker", "UploadIdMarker": "upload-id-marker"}
        query |= {markers[name]: html.unescape(value) for name, value in _NEXT.findall(answer)}
    return count


def _ask(bucket: Service, method: str, path: str, query: dict[str, str]) -> tuple[int, str]:
    """One signed request (AWS signature version 4) without a body: status and answer."""
    url = urlsplit(bucket.url)
    path = quote(url.path + path, safe="/-_.~") or "/"
    asked = "&".join(f"{quote(name, safe='-_.~')}={quote(value, safe='-_.~')}" for name, value in sorted(query.items()))
    headers = _signed(bucket, method, url.netloc, path, asked)
    connection = http.client.HTTPConnection(url.netloc, timeout=TIMEOUT)
    if url.scheme == "https":
        context = ssl.create_default_context(cafile=bucket.authority)
        connection = http.client.HTTPSConnection(url.netloc, timeout=TIMEOUT, context=context)
    with contextlib.closing(connection):
        connection.request(method, f"{path}?{asked}", headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read(ANSWER).decode("utf-8", "replace")


def _signed(bucket: Service, method: str, host: str, path: str, asked: str) -> dict[str, str]:
    keys, now = bucket.keys(), datetime.now(timezone.utc)
    stamp, day = now.strftime("%Y%m%dT%H%M%SZ"), now.strftime("%Y%m%d")
    nothing = hashlib.sha256(b"").hexdigest()
    headers = {"host": host, "x-amz-content-sha256": nothing, "x-amz-date": stamp}
    if keys.get("token"):
        headers["x-amz-security-token"] = keys["token"]
    names = ";".join(sorted(headers))
    lines = "".join(f"{name}:{headers[name]}\n" for name in sorted(headers))
    request = f"{method}\n{path}\n{asked}\n{lines}\n{names}\n{nothing}"
    scope = f"{day}/{bucket.region}/s3/aws4_request"
    text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
    key = f"AWS4{keys['secret_access_key']}".encode()
    for part in (day, bucket.region, "s3", "aws4_request", text):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    credential = f"Credential={keys['access_key_id']}/{scope}"
    headers["authorization"] = f"AWS4-HMAC-SHA256 {credential}, SignedHeaders={names}, Signature={key.hex()}"
    return headers
