"""Storages of either kind, as another system sees them."""

from __future__ import annotations

from pathlib import Path

from support.cli import Cli, Done
from support.s3.client import S3Client


class Folder:
    """Objects in a folder, as another system sees them."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def put(self, path: str, data: bytes) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        # As a new file: the time of change of one that is written twice in a moment might be the same.
        fresh = file.with_name(f".new-{file.name}")
        fresh.write_bytes(data)
        fresh.rename(file)

    def get(self, path: str) -> bytes:
        return (self.root / path).read_bytes()

    def delete(self, path: str) -> None:
        (self.root / path).unlink()


class Bucket:
    """The same in a bucket, below a prefix."""

    def __init__(self, client: S3Client, url: str) -> None:
        self.client = client
        self.bucket, _, self.prefix = url.removeprefix("s3://").partition("/")

    def put(self, path: str, data: bytes) -> str | None:
        """Writes an object; its version, if the bucket keeps versions."""
        return self.client.put(self.bucket, f"{self.prefix}/{path}", data)

    def get(self, path: str) -> bytes:
        found = self.client.read(self.bucket, f"{self.prefix}/{path}")
        assert found is not None, f"there is no {path}"
        return found

    def delete(self, path: str) -> None:
        self.client.delete(self.bucket, f"{self.prefix}/{path}")


class Place:
    """A storage of either kind, and runs that use it."""

    def __init__(self, cli: Cli, words: list[str], env: dict[str, str], store: Folder | Bucket) -> None:
        self.cli, self.words, self.env = cli, words, env
        self.put, self.get, self.delete = store.put, store.get, store.delete

    def run(self, flow: Path, *words: str) -> Done:
        return self.cli("run", flow, *self.cli.where, *self.words, *words, env=self.env)
