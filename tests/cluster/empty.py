"""An API server of a test's own, with nothing in it and no node: what is of the whole cluster can be made and deleted there."""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

from support.processes import free_port
from support.waiting import until

TOKEN = "only-in-a-test"


class EmptyCluster:
    """etcd and API server as processes of this machine; ``config`` is an administrator's kubeconfig."""

    def __init__(self, folder: Path, *options: str) -> None:
        """``options``: further ones of the API server."""
        self.folder, self.config, self.options = folder, folder / "kubeconfig", options
        self._processes: list[subprocess.Popen[bytes]] = []

    @staticmethod
    def can_be_had() -> bool:
        return all(shutil.which(program) for program in ("etcd", "kube-apiserver", "openssl"))

    def __enter__(self) -> EmptyCluster:
        port, client, peer = free_port(), free_port(), free_port()
        key = str(self.folder / "sa.key")
        subprocess.run(["openssl", "genrsa", "-out", key], check=True, capture_output=True)
        (self.folder / "tokens.csv").write_text(f'{TOKEN},admin,1,"system:masters"\n')
        etcd = f"http://127.0.0.1:{client}"
        self._run(
            *("etcd", "--data-dir", str(self.folder / "etcd"), "--unsafe-no-fsync", "--log-level", "warn"),
            *("--listen-client-urls", etcd, "--advertise-client-urls", etcd),
            *(
                "--listen-peer-urls",
                f"http://127.0.0.1:{peer}",
                "--initial-advertise-peer-urls",
                f"http://127.0.0.1:{peer}",
            ),
            *("--initial-cluster", f"default=http://127.0.0.1:{peer}"),
        )
        self._run(
            *("kube-apiserver", f"--etcd-servers={etcd}", "--bind-address=127.0.0.1", "--advertise-address=127.0.0.1"),
            *("--endpoint-reconciler-type=none", f"--secure-port={port}", f"--cert-dir={self.folder}"),
            *("--service-cluster-ip-range=10.96.0.0/16", f"--token-auth-file={self.folder}/tokens.csv"),
            *("--service-account-issuer=https://kubernetes.default.svc", f"--service-account-key-file={key}"),
            *(f"--service-account-signing-key-file={key}", "--authorization-mode=RBAC", "--anonymous-auth=true"),
            *self.options,
        )
        user = {"name": "admin", "user": {"token": TOKEN}}
        self.server = f"https://127.0.0.1:{port}"
        self._context = ssl.create_default_context()
        self._context.check_hostname, self._context.verify_mode = False, ssl.CERT_NONE
        cluster = {"name": "empty", "cluster": {"server": self.server, "insecure-skip-tls-verify": True}}
        context = {"name": "empty", "context": {"cluster": "empty", "user": "admin"}}
        parts = {"clusters": [cluster], "users": [user], "contexts": [context], "current-context": "empty"}
        self.config.write_text(json.dumps({"apiVersion": "v1", "kind": "Config", **parts}))
        try:
            until("the API server is ready", lambda: "ok" in self.kubectl("get", "--raw", "/readyz", check=False), 90)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._processes):
            process.kill()
            process.wait()

    def kubectl(self, *words: str, stdin: str = "", check: bool = True) -> str:
        command = ["kubectl", "--kubeconfig", str(self.config), *words]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60)
        assert not check or done.returncode == 0, f"kubectl {' '.join(words)}: {done.stderr}"
        return done.stdout if done.returncode == 0 else done.stdout + done.stderr

    def get(self, path: str) -> Any:
        """An answer of the API server, without a process of kubectl for it."""
        request = urllib.request.Request(f"{self.server}{path}", headers={"Authorization": f"Bearer {TOKEN}"})
        with urllib.request.urlopen(request, timeout=60, context=self._context) as answer:
            return json.loads(answer.read())

    def _run(self, *words: str) -> None:
        with (self.folder / f"{words[0]}.log").open("ab") as log:
            self._processes.append(subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log))
