"""``Store`` over obstore: S3 and compatible services, and Google Cloud Storage.

obstore is imported when the first store is opened. Its errors are text of a fixed form (HTTP status, then the
server's XML); ``failure`` turns them into the documented reasons.
"""

from __future__ import annotations

import configparser
import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from typing import Any, NoReturn

from . import credentials, leftovers, storage, uploads
from .storage import Check, Data, Exists, Stat, StorageError, Store, check_key, clean, pieces

# The first whose client takes a private authority and whose errors have the form that `failure` reads.
_OLDEST = (0, 11)
_OPTIONS = {"addressing", "anonymous", "ca_file"}
# Rotated credentials in a mounted file are seen after this long.
_REREAD = timedelta(seconds=10)
_RANGE_THREADS = 4
# Of a file that goes up in parts so much is read at a time.
_PIECE = 1 << 20


class ObjectStore(Store):
    """A bucket with a prefix. Two clients: a short deadline for small requests, a long one for data."""

    def __init__(
        self,
        scheme: str,
        bucket: str,
        prefix: str,
        *,
        endpoint: str | None,
        region: str | None,
        options: dict[str, Any],
    ) -> None:
        unknown = sorted(set(options) - _OPTIONS)
        if unknown:
            raise StorageError(
                "InvalidStorage", f"unknown storage option {unknown[0]}, known are {sorted(_OPTIONS)}"
            )
        try:
            import obstore
        except ImportError:
            raise StorageError(
                "NoStorageLibrary", f"{scheme}:// needs the Python package obstore, which this image lacks"
            ) from None
        if tuple(int(part) for part in re.findall(r"\d+", obstore.__version__)[:2]) < _OLDEST:
            raise StorageError(
                "NoStorageLibrary",
                f"{scheme}:// needs obstore {'.'.join(map(str, _OLDEST))} or newer, "
                f"this image has {obstore.__version__}",
            )
        self._api = obstore
        self._service: uploads.Service | None = None
        self.prefix = prefix + "/" if prefix else ""
        self.url = f"{scheme}://{bucket}/{prefix}".rstrip("/")
        build = self._s3 if scheme == "s3" else self._gcs
        self._small = build(bucket, endpoint, region, options, storage.SMALL_TIMEOUT)
        self._large = build(bucket, endpoint, region, options, storage.REQUEST_TIMEOUT)

    def _s3(
        self, bucket: str, endpoint: str | None, region: str | None, options: dict[str, Any], limit: float
    ) -> Any:
        from obstore.store import S3Store

        endpoint = endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        region = region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
        config: dict[str, Any] = {"region": region}
        if endpoint:
            if not re.fullmatch(r"https?://[^/?#@\s]+/?", endpoint):
                raise StorageError(
                    "InvalidStorage", f"endpoint {clean(endpoint)} is not http(s)://host[:port]"
                )
            config["endpoint"] = endpoint.rstrip("/")
        addressing = options.get("addressing", "path")
        if addressing not in ("path", "virtual"):
            raise StorageError("InvalidStorage", "storage option addressing is path or virtual")
        if addressing == "virtual":
            config["virtual_hosted_style_request"] = True
            if endpoint:
                host = config["endpoint"].split("://", 1)
                config["endpoint"] = f"{host[0]}://{bucket}.{host[1]}"
        if options.get("anonymous"):
            config["skip_signature"] = True
        else:
            provider = _credentials(bool(endpoint))
            if provider is not None:
                config["credential_provider"] = provider
            self._service = uploads.service(bucket, config, provider, _authority(options))
        return S3Store(
            bucket,
            client_options=_client_options(options, limit, bool(endpoint and endpoint.startswith("http://"))),
            retry_config=_RETRY,
            **config,
        )

    def _gcs(
        self, bucket: str, endpoint: str | None, region: str | None, options: dict[str, Any], limit: float
    ) -> Any:
        from obstore.store import GCSStore

        if endpoint or region:
            raise StorageError("InvalidStorage", "gs:// takes neither endpoint nor region")
        return GCSStore(bucket, client_options=_client_options(options, limit, False), retry_config=_RETRY)

    def put(self, key: str, data: Data) -> str | None:
        path = self._path(key)
        parts = pieces(data)
        size = sum(len(part) for part in parts)
        try:
            if size <= storage.MULTIPART_FROM:
                body = parts[0] if len(parts) == 1 else b"".join(parts)
                client = self._small if size <= storage.SMALL else self._large
                return _tag(self._api.put(client, path, body, use_multipart=False))
            return self._multipart(path, iter(parts), size)
        except Exception as error:  # noqa: BLE001 - obstore's own types are many, all are told apart in failure()
            self._fail("put", key, error)

    def put_file(self, key: str, path: str) -> str | None:
        target = self._path(key)
        with open(path, "rb") as source:
            size = os.fstat(source.fileno()).st_size
            try:
                if size <= storage.MULTIPART_FROM:
                    return _tag(self._api.put(self._large, target, source.read(), use_multipart=False))
                return self._multipart(target, source, size)
            except Exception as error:  # noqa: BLE001 - obstore's own types are many, all are told apart in failure()
                self._fail("put", key, error)

    def _multipart(self, path: str, source: Any, size: int) -> str | None:
        if size > storage.OBJECT_LIMIT:
            raise StorageError("OutputTooLarge", f"output has {size} bytes; the limit is {storage.OBJECT_LIMIT}")
        chunk = max(storage.PART, -(-size // (storage.PARTS_LIMIT - 1)))
        options: Any = {"use_multipart": True, "chunk_size": chunk, "max_concurrency": 4}
        return _tag(self._api.put(self._large, path, source, **options))

    def create_file(self, key: str, path: str, check: Check | None = None) -> str | None:
        if os.path.getsize(path) <= storage.MULTIPART_FROM:
            with open(path, "rb") as source:
                return self.create(key, source.read())
        if self.look(key) is not None:
            raise Exists(key)
        return self._put_parts(key, path, None, check or (lambda last: None))

    def replace(
        self, key: str, data: Data | None, path: str | None, seen: Stat | None, check: Check
    ) -> str | None:
        if path is not None:
            if os.path.getsize(path) > storage.MULTIPART_FROM:
                return self._put_parts(key, path, seen, check)
            with open(path, "rb") as source:
                data = source.read()
        check(True)
        if seen is None:
            return self.create(key, data or b"")
        body = b"".join(pieces(data or b""))
        client = self._small if len(body) <= storage.SMALL else self._large
        try:
            if seen.named is not None:
                return _tag(self._api.put(client, self._path(key), body, mode=seen.named))
        except self._api.exceptions.PreconditionError as error:
            self._still_decided("replace", key, error)
            raise Exists(key) from None
        except Exception as error:  # noqa: BLE001 - obstore's own types are many, all are told apart in failure()
            if not _unconditional(error):
                self._fail("put", key, error)
        # The service knows no such condition.
        if self.look(key) != seen:
            raise Exists(key)
        return self.put(key, body)

    def _put_parts(self, key: str, path: str, seen: Stat | None, check: Check) -> str | None:
        """A file in parts. There is no object before the last of them, which is held back until ``check``, and a
        look at what is there, allow it.
        """
        ended: list[BaseException] = []
        with open(path, "rb") as source:
            size = os.fstat(source.fileno()).st_size

            def last() -> None:
                check(True)
                if self.look(key) != seen:
                    raise Exists(key)

            def parts() -> Iterator[bytes]:
                left = size
                try:
                    while piece := source.read(min(left, _PIECE)):
                        left -= len(piece)
                        if left:
                            check(False)
                        else:
                            # In a thread of its own: the library takes no call from within another one.
                            with ThreadPoolExecutor(1) as pool:
                                pool.submit(last).result()
                        yield piece
                except BaseException as error:
                    ended.append(error)
                    raise

            try:
                return self._multipart(self._path(key), parts(), size)
            except Exception as error:  # noqa: BLE001 - obstore's own types are many, all are told apart in failure()
                if ended:
                    raise ended[0] from None
                self._fail("put", key, error)

    def _still_decided(self, action: str, key: str, error: Exception) -> None:
        """412 is a lost race. 409 is one that is still being decided: the other put may yet fail."""
        if " 409 " in str(error).partition("\n\nDebug source")[0]:
            why = f"cannot {action} {self.url}/{clean(key)}: concurrent write (409)"
            raise StorageError("StorageUnreachable", why, transient=True) from error

    def create(self, key: str, data: Data) -> str | None:
        path = self._path(key)
        parts = pieces(data)
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        client = self._small if len(body) <= storage.SMALL else self._large
        try:
            return _tag(self._api.put(client, path, body, mode="create"))
        except self._api.exceptions.AlreadyExistsError as error:
            self._still_decided("create", key, error)
            raise Exists(key) from None
        except Exception as error:  # noqa: BLE001 - obstore's own types are many, all are told apart in failure()
            self._fail("create", key, error)

    def get(self, key: str, start: int | None = None, length: int | None = None) -> bytes:
        path = self._path(key)
        options: Any = None
        if length == 0:
            return b""
        if length is not None:
            options = {"range": (start or 0, (start or 0) + length)}
        elif start:
            options = {"range": {"offset": start}}
        try:
            answer = self._api.get(self._large, path, options=options)
            first, last = answer.range
            if last - first <= storage.MULTIPART_FROM:
                return bytes(answer.bytes())
            tag = answer.meta["e_tag"]
            del answer
            whole = bytearray(last - first)

            def fetch(at: int, data: memoryview) -> None:
                whole[at - first : at - first + len(data)] = data

            self._ranges(path, first, last, tag, fetch)
            return bytes(whole)
        except StorageError:
            raise
        except Exception as error:  # noqa: BLE001 - obstore's own types are many, all are told apart in failure()
            if options is not None and " 416 " in str(error).partition("\n\nDebug source")[0]:
                return b""
            self._fail("get", key, error)

    def get_to_file(self, key: str, path: str, version: str | None = None) -> Stat:
        target = self._path(key)
        try:
            answer = self._api.get(self._large, target, options={"version": version} if version else None)
            found = _stat(answer.meta)
            size = found.size
            with open(path, "wb") as sink:
                if size <= storage.MULTIPART_FROM:
                    sink.writelines(memoryview(chunk) for chunk in answer.stream(min_chunk_size=1 << 20))
                else:
                    tag = answer.meta["e_tag"]
                    del answer
                    descriptor = sink.fileno()

                    def fetch(at: int, data: memoryview) -> None:
                        while data:
                            done = os.pwrite(descriptor, data, at)
                            at, data = at + done, data[done:]

                    self._ranges(target, 0, size, tag, fetch, version)
            return found
        except OSError as error:
            if isinstance(error, FileNotFoundError) and error.errno is None:
                self._fail("get", key, error, version)
            raise
        except Exception as error:  # noqa: BLE001 - obstore's own types are many, all are told apart in failure()
            self._fail("get", key, error, version)

    def _ranges(
        self, path: str, first: int, last: int, tag: str | None, fetch: Any, version: str | None = None
    ) -> None:
        """Fetches [first, last) in parts, several at a time, all of the same version of the object."""

        def one(at: int) -> None:
            end = min(at + storage.PART, last)
            options: dict[str, Any] = {"range": (at, end)}
            if tag:
                options["if_match"] = tag
            if version:
                options["version"] = version
            data = memoryview(self._api.get(self._large, path, options=options).bytes())
            if len(data) != end - at:
                raise StorageError("StorageUnreachable", f"short read of {clean(path)}", transient=True)
            fetch(at, data)

        with ThreadPoolExecutor(_RANGE_THREADS) as pool:
            for _ in pool.map(one, range(first, last, storage.PART)):
                pass

    def look(self, key: str, version: str | None = None) -> Stat | None:
        try:
            if version is not None:
                options = {"version": version, "head": True}
                return _stat(self._api.get(self._small, self._path(key), options=options).meta)
            return _stat(self._api.head(self._small, self._path(key)))
        except FileNotFoundError:
            return None
        except Exception as error:  # noqa: BLE001 - obstore's own types are many, all are told apart in failure()
            self._fail("head", key, error, version)

    def list(self, prefix: str, after: str | None = None) -> Iterator[tuple[str, int]]:
        folder = prefix.strip("/")
        path = self._path(folder) + "/" if folder else self.prefix
        offset = self._path(after) if after else None
        found: list[tuple[bytes, str, int]] = []
        try:
            for batch in self._api.list(self._small, path or None, offset=offset, chunk_size=1000):
                for entry in batch:
                    name = entry["path"]
                    if name.startswith(path) and (offset is None or name > offset):
                        key = name[len(self.prefix) :]
                        found.append((key.encode(), key, int(entry["size"])))
        except Exception as error:  # noqa: BLE001 - obstore's own types are many, all are told apart in failure()
            self._fail("list", prefix, error)
        # SeaweedFS and S3 Express list in another order than that of the bytes.
        found.sort()
        return iter([(key, size) for _, key, size in found])

    def delete(self, keys: Iterable[str]) -> None:
        paths = [self._path(key) for key in keys]
        try:
            if paths:
                self._api.delete(self._small, paths)
        except FileNotFoundError:
            pass
        except Exception as error:  # noqa: BLE001 - obstore's own types are many, all are told apart in failure()
            self._fail("delete", "", error)

    def sweep(self, prefix: str, upto: leftovers.Owner | None) -> None:
        if self._service is not None:
            with contextlib.suppress(Exception):
                uploads.abort(self._service, f"{self._path(prefix)}/")

    def _path(self, key: str) -> str:
        check_key(key)
        return check_key(self.prefix + key)

    def _fail(self, action: str, key: str, error: Exception, version: str | None = None) -> NoReturn:
        if isinstance(error, StorageError):
            raise error
        what = f"{self.url}/{clean(key)}" + (f" (version {clean(version)})" if version else "")
        raise failure(f"cannot {action} {what}", action, error) from error


_RETRY: Any = {
    # Only what a reset connection needs. Longer backoff is the caller's, who reports it.
    "max_retries": 2,
    "retry_timeout": timedelta(seconds=10),
    "backoff": {
        "init_backoff": timedelta(milliseconds=100),
        "max_backoff": timedelta(seconds=2),
        "base": 2,
    },
}


def _tag(put: Any) -> str | None:
    """The version that a put has made; None if the service does not tell."""
    tag = put.get("e_tag")
    return tag.strip('"') if tag else None


def _stat(meta: Any) -> Stat:
    size = int(meta["size"])
    named = {name: meta[name] for name in ("e_tag", "version") if meta.get(name)} if meta.get("e_tag") else None
    return Stat(size, _tag(meta) or f"{meta['last_modified'].timestamp():.0f}-{size:x}", named)


def _unconditional(error: Exception) -> bool:
    """The service does not know a put that replaces one version only."""
    head = str(error).partition("\n\nDebug source")[0]
    return isinstance(error, NotImplementedError) or "status code: 501" in head or "NotImplemented" in head


def _authority(options: dict[str, Any]) -> str | None:
    return options.get("ca_file") or os.environ.get("AWS_CA_BUNDLE")


def _client_options(options: dict[str, Any], limit: float, http: bool) -> Any:
    client: dict[str, Any] = {
        "connect_timeout": timedelta(seconds=storage.CONNECT_TIMEOUT),
        "timeout": timedelta(seconds=limit),
        "allow_http": http,
        "user_agent": "daskade",
    }
    authority = _authority(options)
    if authority:
        try:
            with open(authority, "rb") as source:
                client["root_certificate"] = source.read()
        except OSError as error:
            raise StorageError(
                "InvalidStorage", f"cannot read {clean(str(authority))}: {error.strerror}"
            ) from error
    return client


def _credentials(custom_endpoint: bool) -> Any:
    """A provider for obstore, or None where it finds credentials itself (web identity, container,
    instance)."""
    env = os.environ
    known = credentials.mounted()

    def from_folder() -> dict[str, Any]:
        nonlocal known
        # A Secret that lost its keys is about to be corrected.
        known = credentials.mounted() or known
        assert known is not None
        return {
            "access_key_id": known["AWS_ACCESS_KEY_ID"],
            "secret_access_key": known["AWS_SECRET_ACCESS_KEY"],
            "token": known.get("AWS_SESSION_TOKEN"),
            "expires_at": datetime.now(timezone.utc) + _REREAD + timedelta(minutes=5),
        }

    if known is not None:
        return from_folder

    def from_env() -> dict[str, Any]:
        # Pasted secrets end in newlines often enough.
        token = env.get("AWS_SESSION_TOKEN", "").strip()
        return {
            "access_key_id": env["AWS_ACCESS_KEY_ID"].strip(),
            "secret_access_key": env["AWS_SECRET_ACCESS_KEY"].strip(),
            "token": token or None,
            "expires_at": None,
        }

    if env.get("AWS_ACCESS_KEY_ID") and env.get("AWS_SECRET_ACCESS_KEY"):
        return from_env
    if env.get("AWS_WEB_IDENTITY_TOKEN_FILE") and env.get("AWS_ENDPOINT_URL_STS", "").startswith("http://"):
        raise StorageError(
            "InvalidStorage", "the library uses a token service (AWS_ENDPOINT_URL_STS) at https:// only"
        )
    if env.get("AWS_WEB_IDENTITY_TOKEN_FILE") or any(
        name.startswith("AWS_CONTAINER_CREDENTIALS") for name in env
    ):
        return None
    path = env.get("AWS_SHARED_CREDENTIALS_FILE") or os.path.expanduser("~/.aws/credentials")
    profile = env.get("AWS_PROFILE") or "default"

    def from_file() -> dict[str, Any]:
        file = configparser.RawConfigParser()
        file.read(path)
        section = file[profile]
        return {
            "access_key_id": section["aws_access_key_id"].strip(),
            "secret_access_key": section["aws_secret_access_key"].strip(),
            "token": section.get("aws_session_token") or None,
            "expires_at": datetime.now(timezone.utc) + _REREAD + timedelta(minutes=5),
        }

    try:
        from_file()
        return from_file
    except (KeyError, configparser.Error, OSError, UnicodeDecodeError):
        pass
    if custom_endpoint:
        # Otherwise the request waits for an instance metadata service that cannot know these keys.
        raise StorageError(
            "AccessDenied",
            "no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or ~/.aws/credentials)",
        )
    return None


_REASONS: dict[str, tuple[str, bool]] = {
    "NoSuchBucket": ("NoSuchBucket", False),
    "InvalidBucketName": ("NoSuchBucket", False),
    "NoSuchKey": ("NotFound", False),
    "AccessDenied": ("AccessDenied", False),
    "AllAccessDisabled": ("AccessDenied", False),
    "AccountProblem": ("AccessDenied", False),
    "InvalidAccessKeyId": ("AccessDenied", False),
    "SignatureDoesNotMatch": ("AccessDenied", False),
    "UnauthorizedAccess": ("AccessDenied", False),
    # The token service's.
    "InvalidIdentityToken": ("AccessDenied", False),
    "IDPRejectedClaim": ("AccessDenied", False),
    # New credentials arrive in the file or from the token service, so waiting helps.
    "ExpiredToken": ("CredentialsExpired", True),
    "ExpiredTokenException": ("CredentialsExpired", True),
    "TokenRefreshRequired": ("CredentialsExpired", True),
    "InvalidToken": ("CredentialsExpired", True),
    "RequestTimeTooSkewed": ("ClockSkew", False),
    "PermanentRedirect": ("WrongRegion", False),
    "TemporaryRedirect": ("WrongRegion", False),
    "AuthorizationHeaderMalformed": ("WrongRegion", False),
    "AuthorizationQueryParametersError": ("WrongRegion", False),
    "IllegalLocationConstraintException": ("WrongRegion", False),
    "QuotaExceeded": ("StorageFull", True),
    "InsufficientStorage": ("StorageFull", True),
    "InsufficientCapacity": ("StorageFull", True),
    "XMinioStorageFull": ("StorageFull", True),
    "XMinioAdminBucketQuotaExceeded": ("StorageFull", True),
    "EntityTooLarge": ("OutputTooLarge", False),
    "SlowDown": ("StorageUnreachable", True),
    "ServiceUnavailable": ("StorageUnreachable", True),
    "InternalError": ("StorageUnreachable", True),
    "RequestTimeout": ("StorageUnreachable", True),
    "OperationAborted": ("StorageUnreachable", True),
    "BadDigest": ("StorageUnreachable", True),
    "IncompleteBody": ("StorageUnreachable", True),
}


def failure(what: str, action: str, error: Exception) -> StorageError:
    """The ``StorageError`` for an exception of obstore."""
    text = str(error)
    head, _, debug = text.partition("\n\nDebug source")
    status = _int(re.search(r"status code: (\d{3})", head))
    code = _first(r"<Code>([A-Za-z0-9.]{1,64})</Code>", head)
    said = _first(r"<Message>([^<]{1,300})</Message>", head)
    reason, transient = "StorageRejected", False
    if code in _REASONS:
        reason, transient = _REASONS[code]
    elif status in (401, 403):
        reason = "AccessDenied"
    elif "redirect without LOCATION" in head:
        # What S3 answers for a bucket of another region; the library keeps the body, which names it, to
        # itself.
        reason = "WrongRegion"
    elif status == 404 or isinstance(error, FileNotFoundError):
        reason = "NotFound"
    elif status in (301, 302, 307, 308):
        reason = "WrongRegion"
    elif status == 507:
        reason, transient = "StorageFull", True
    elif action == "create" and (status == 501 or code == "NotImplemented"):
        reason = "NoConditionalPut"
    elif status is None or status in (408, 409, 412, 429) or status >= 500:
        # No status: nothing came back (refused, reset, timeout, name, TLS, torn body).
        reason, transient = "StorageUnreachable", True
    details = [str(status)] if status else []
    if code:
        details.append(code)
    if said:
        details.append(said)
    if status is None:
        details.append(head.rpartition(" - ")[2][:300] or "no answer")
        details.extend(_causes(debug))
    if reason == "ClockSkew":
        ours, theirs = _first(r"<RequestTime>([^<]{1,40})<", head), _first(r"<ServerTime>([^<]{1,40})<", head)
        details.append(f"our time {ours}, the server's {theirs}")
    if reason == "WrongRegion":
        named = _first(r"<Region>([^<]{1,40})</Region>", head) or _first(
            r"expecting '([a-z0-9-]{1,40})'", head
        )
        where = _first(r"<Endpoint>([^<]{1,100})</Endpoint>", head)
        if named or where:
            details.append(f"the bucket is in {named or where}")
    return StorageError(reason, clean(f"{what}: {': '.join(details)}"), transient=transient)


def _causes(debug: str) -> list[str]:
    """The readable causes inside obstore's debug text: refused, unknown host, bad certificate."""
    found = re.findall(r'message: "([^"]{1,120})"', debug)
    found += re.findall(r'error: "([^"]{1,120})"', debug)
    found += ["bad certificate: " + name for name in re.findall(r"InvalidCertificate\(\s*(\w{1,60})", debug)]
    if "InvalidContentType" in debug:
        found.append("the server does not speak TLS")
    if "TimedOut" in debug:
        found.append("timed out")
    if "dns error" in debug:
        found.insert(0, "the host name is unknown")
    return list(dict.fromkeys(found))[:3]


def _first(pattern: str, text: str) -> str | None:
    found = re.search(pattern, text)
    return found.group(1).strip() if found else None


def _int(found: re.Match[str] | None) -> int | None:
    return int(found.group(1)) if found else None
