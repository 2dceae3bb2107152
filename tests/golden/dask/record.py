"""Records the golden files of this folder. Needs `distributed` and `msgpack`; run it in this folder.

    python record.py

The bytes are what a real scheduler sends and what `pickle` can load, taken from a raw socket: the client side
of this file shares no code with Dask.
"""

import os
import pathlib
import pickle
import pickletools
import re
import socket
import struct
import subprocess
import sys

import msgpack

SOURCE = "async def main(text, other, dask_scheduler=None):\n    return text.encode()\n"
HERE = pathlib.Path(__file__).parent


class Writer:
    """The opcodes that the Rust writer uses, written down a second time."""

    def __init__(self) -> None:
        self.out = bytearray(b"\x80\x04")
        self.memo: dict[object, int] = {}

    def memoize(self, key: object) -> None:
        self.out += b"\x94"
        self.memo[key] = len(self.memo)

    def known(self, key: object) -> bool:
        if key not in self.memo:
            return False
        at = self.memo[key]
        self.out += b"h" + bytes([at]) if at < 256 else b"j" + struct.pack("<I", at)
        return True

    def text(self, text: str) -> None:
        if not self.known(text):
            raw = text.encode()
            short = len(raw) < 256
            self.out += (b"\x8c" + bytes([len(raw)]) if short else b"X" + struct.pack("<I", len(raw))) + raw
            self.memoize(text)

    def function(self, module: str, name: str) -> None:
        if not self.known((module, name)):
            self.text(module)
            self.text(name)
            self.out += b"\x93"
            self.memoize((module, name))

    def done(self) -> bytes:
        return bytes(self.out + b".")


def from_source(source: str, want: str, filename: str) -> bytes:
    w = Writer()
    w.function("builtins", "exec")
    w.function("builtins", "compile")
    for text in (source, filename, "exec"):
        w.text(text)
    w.out += b"\x87R}("
    w.text("__name__")
    w.text("daskade_boot")
    w.text("__builtins__")
    w.function("importlib", "import_module")
    w.text("builtins")
    w.out += b"\x85R"
    w.memoize(object())
    w.out += b"u"
    namespace = object()
    w.memoize(namespace)
    w.out += b"\x86R0"
    w.function("operator", "getitem")
    w.known(namespace)
    w.text(want)
    w.out += b"\x86R"
    return w.done()


def texts(*items: str) -> bytes:
    w = Writer()
    w.out += b"("
    for item in items:
        w.text(item)
    w.out += b"t"
    return w.done()


def pack(message: object) -> bytes:
    body: bytes = msgpack.packb(message, use_bin_type=True)
    return struct.pack("<QQQ", 16 + len(body), 1, len(body)) + body


def read(sock: socket.socket) -> bytes:
    """One whole message, byte for byte."""

    def exactly(n: int) -> bytes:
        out = b""
        while len(out) < n:
            part = sock.recv(n - len(out))
            if not part:
                raise EOFError
            out += part
        return out

    head = exactly(8)
    block = exactly(struct.unpack("<Q", head)[0])
    (count,) = struct.unpack_from("<Q", block)
    lengths = struct.unpack_from(f"<{count}Q", block, 8)
    apart = 8 + 8 * count + sum(lengths) - len(block)
    return head + block + exactly(apart)


def save(name: str, data: bytes) -> None:
    (HERE / name).write_bytes(data)
    print(f"{name}: {len(data)} bytes")


def main() -> None:
    import distributed

    long = SOURCE + "# é\n" * 200
    for name, source in (("from_source", SOURCE), ("from_source_long", long)):
        data = from_source(source, "main", "<daskade>")
        pickletools.dis(data, out=open(os.devnull, "w"))
        assert pickle.loads(data).__name__ == "main"
        save(f"{name}.pickle", data)
    items = ("source", "digest", "é", "x" * 300)
    assert pickle.loads(texts(*items)) == items
    save("texts.pickle", texts(*items))

    version = distributed.__version__
    args = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
    scheduler = subprocess.Popen(
        [sys.executable, "-m", "distributed.cli.dask_scheduler", *args], stderr=subprocess.PIPE, text=True
    )
    assert scheduler.stderr is not None
    for line in scheduler.stderr:
        found = re.search(r"Scheduler at:\s+tcp://127.0.0.1:(\d+)", line)
        if found:
            port = int(found[1])
            break
    worker = subprocess.Popen(
        [sys.executable, "-m", "distributed.cli.dask_worker", f"tcp://127.0.0.1:{port}", "--nthreads", "1"]
        + ["--name", "cpu-0-1", "--no-nanny", "--no-dashboard", "--memory-limit", "1GiB", "--resources", "GPU=2"],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert worker.stderr is not None
    next(line for line in worker.stderr if "Registered to" in line)
    try:
        with socket.create_connection(("127.0.0.1", port), 10) as sock:
            sock.sendall(pack({"compression": None, "python": [3, 12, 0], "pickle-protocol": 5}))
            save(f"{version}-hello.bin", read(sock))

            def call(name: str, **message: object) -> None:
                sock.sendall(pack({"reply": True, **message}))
                save(f"{version}-{name}.bin", read(sock))

            function = {"kwargs": b"\x80\x04}.", "wait": True, "op": "run_function"}
            call("identity", op="identity")
            call("versions", op="versions")
            call("processing", op="processing", workers=None)
            call("unknown", op="daskade-no-such-op")
            call("bad-argument", op="identity", bogus=1)
            call("run-bytes", function=from_source(SOURCE, "main", "<daskade>"), args=texts("abc", "d"), **function)
            call("run-raises", function=pickle.dumps(divmod), args=pickle.dumps((1, 0)), **function)
            call("run-pickled", function=pickle.dumps(complex), args=pickle.dumps((1, 2)), **function)
    finally:
        for process in (worker, scheduler):
            process.terminate()
            process.wait(20)


if __name__ == "__main__":
    main()
