"""Code that is an archive: in a folder or on S3, fetched by the scheduler, the same for a run until its end."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from support.cli import Cli
from support.s3.server import BUCKET, S3Server

MANIFEST = """
apiVersion: daskade.dev/v1alpha1
kind: Pipeline
metadata: {{name: archived}}
spec:
  code: {{{code}}}
  results: [{{name: version, value: $(steps.which.output)}}]
  steps:
  - {{name: first, call: "flow:first"}}
  - {{name: which, call: "flow:which", args: [$(steps.first.output)]}}
"""
FLOW = """
import os

def first():
    if os.path.exists({stop!r}):
        raise ValueError("not yet")

def which(_):
    return {version}
"""


def archive(version: int, stop: Path) -> bytes:
    text = FLOW.format(version=version, stop=str(stop)).encode()
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as target:
        member = tarfile.TarInfo("flow.py")
        member.size = len(text)
        target.addfile(member, io.BytesIO(text))
    return made.getvalue()


def test_an_archive_in_a_folder_is_fixed_when_the_run_starts(cli: Cli, tmp_path: Path) -> None:
    stop, source, manifest = tmp_path / "stop", tmp_path / "flow.tar.gz", tmp_path / "p.yaml"
    manifest.write_text(MANIFEST.format(code=f"url: 'file://{source}'"))
    missing = cli.run(manifest)
    assert missing.code == 3 and "CodeNotFound" in missing.err, missing
    stop.touch()
    source.write_bytes(archive(1, stop))
    failed = cli.run(manifest, "-o", "json")
    assert failed.code == 1, failed
    # What is there now counts for the next run.
    source.write_bytes(archive(2, stop))
    stop.unlink()
    resumed = cli("resume", failed.json["uid"], "--python", cli.python, "-o", "json")
    assert resumed.json["results"] == {"version": 1}, resumed
    assert cli.run(manifest, "-o", "json").json["results"] == {"version": 2}
    manifest.write_text(MANIFEST.format(code=f"url: 'file://{source}', sha256: '{'0' * 64}'"))
    other = cli.run(manifest)
    assert other.code == 3 and "CodeMismatch" in other.err, other


def test_an_archive_on_s3_is_fetched_with_the_storages_credentials(cli: Cli, tmp_path: Path) -> None:
    with S3Server(tmp_path / "s3") as server:
        server.client().put(BUCKET, "code/flow.tgz", archive(7, tmp_path / "never"))
        manifest = tmp_path / "p.yaml"
        manifest.write_text(MANIFEST.format(code=f"url: 's3://{BUCKET}/code/flow.tgz'"))
        storage = server.storage("runs")["url"]
        words = ("run", manifest, "--python", cli.python, "--storage", storage, "-o", "json")
        done = cli(*words, env=server.environ())
        assert done.code == 0 and done.json["results"] == {"version": 7}, done


def test_a_config_map_is_refused_with_what_to_do(cli: Cli, tmp_path: Path) -> None:
    manifest = tmp_path / "p.yaml"
    manifest.write_text(MANIFEST.format(code="configMap: flow"))
    refused = cli.run(manifest)
    assert refused.code == 2 and "spec.code.configMap: NotImplemented" in refused.err, refused
    assert "use code.files, code.path or code.url" in refused.err
    assert cli("validate", manifest).code == 0, "it is for Kubernetes"
