"""The other side of `s3.rs`: a SeaweedFS, and a run written into it by the runtime. Prints JSON, then
obeys lines on stdin (a fault as JSON, `clear`, `down`, `up`), and ends with it."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile

from daskade_runtime.journal import Journal
from daskade_runtime.storage import open_store
from support.s3.server import S3Server


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, S3Server(folder) as server:
        os.environ.update(server.environ())
        store = open_store(server.storage("pre/fix"))
        store.probe()
        large = bytes(range(256)) * (3 << 12)
        store.put("runs/r-1/data/1/-1-1-aa", large)
        handles = [
            {"u": None, "z": 2, "d": hashlib.sha256(b"42").digest(), "s": "json", "b": b"42"},
            {"u": "data/1/-1-1-aa", "z": len(large), "d": hashlib.sha256(large).digest(), "s": "pickle"},
        ]
        journal, _ = Journal.open(
            store, "r-1", None, True, {"name": "demo", "spec": b"{}", "spec_digest": "aa"}
        )
        for step, handle in enumerate(handles):
            journal.append([["committed", step, -1, 1, handle, "cpu-0-1", 1.0, 2.0, None, None]])
        Journal.open(store, "r-1", 7, False, {"spec_digest": "aa"})
        store.put("runs/r-1/logs/cpu-0-1-aa-000000.jsonl", b'[1.5, "one", -1, 1, "stdout", "hello"]\n')
        print(json.dumps({"environ": server.environ(), "storage": server.storage("pre/fix")}), flush=True)
        for line in sys.stdin:
            word = line.strip()
            if word.startswith("{"):
                server.fault(**json.loads(word))
            else:
                getattr(server, word)()
            print("done", flush=True)


if __name__ == "__main__":
    main()
