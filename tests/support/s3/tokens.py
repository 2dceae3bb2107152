"""A double of AWS's token service: it exchanges a token for the keys of an S3 server.

It does not check signatures. ``main`` is the whole program of a pod, so this file needs nothing but Python.
"""

from __future__ import annotations

import base64
import http.server
import json
import os
import ssl
import threading
from collections.abc import Callable
from urllib.parse import parse_qs, urlsplit

ROLE = "arn:aws:iam::123456789012:role/runs"
AUDIENCE = "sts.example.com"
ANSWER = """<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">
<AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>{}</AccessKeyId><SecretAccessKey>{}</SecretAccessKey>
<SessionToken></SessionToken><Expiration>2099-01-01T00:00:00Z</Expiration></Credentials>
</AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"""
REFUSAL = "<Error><Code>InvalidIdentityToken</Code></Error>"


class TokenService:
    """Serves on ``port`` (0: any free one) over TLS. ``accepts`` is asked about each token."""

    def __init__(
        self, context: ssl.SSLContext, keys: tuple[str, str], accepts: Callable[[str], bool], address: str = "", port: int = 0
    ) -> None:
        asked: list[dict[str, str]] = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                query = parse_qs(urlsplit(self.path).query)
                asked.append({name: query[name][0] for name in ("Action", "RoleArn", "WebIdentityToken")})
                good = asked[-1]["RoleArn"] == ROLE and accepts(asked[-1]["WebIdentityToken"])
                print("token accepted" if good else "token refused", flush=True)
                body = (ANSWER.format(*keys) if good else REFUSAL).encode()
                self.send_response(200 if good else 400)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.asked = asked
        self.server = http.server.ThreadingHTTPServer((address, port), Handler)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.port = self.server.server_address[1]

    def __enter__(self) -> TokenService:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


def is_of(subject: str, token: str) -> bool:
    """Whether it is a token for this service, of that service account."""
    part = token.split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    print(claims["aud"], claims["sub"], flush=True)
    return bool(claims["aud"] == [AUDIENCE] and claims["sub"] == subject)


def main() -> None:
    """In a pod: certificate and key in /tls, the rest in variables."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain("/tls/tls.crt", "/tls/tls.key")
    keys = (os.environ["KEY"], os.environ["SECRET"])
    subject = os.environ["SUBJECT"]
    TokenService(context, keys, lambda token: is_of(subject, token), port=8443).server.serve_forever()


if __name__ == "__main__":
    main()
