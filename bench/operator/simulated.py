"""One process that answers for the schedulers of all clusters.

    python simulated.py KUBECONFIG

It listens on every loopback address, at the port of schedulers. Whose scheduler it plays in a connection is said by the
address that was connected to: that of a pod, which it knows from watching pods. Its workers are the worker pods that are
ready. It speaks Dask's framing and the operations of daskade's runtime that the operator uses, with the pace of the real
one: a change is seen when it looks, which is once a second. Where the cluster has certificates it shows those of the
cluster's Secret, and asks for one that the same authority has signed. Runs are opened, driven and closed as on a real
scheduler; their steps take ``--step`` seconds and their journals are kept in memory (``runs.py`` of this folder).

Each line on its standard input is a command, answered by a line of JSON: ``stats``, ``reset``, ``hold`` (steps that begin
do not end) and ``release``.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import socket
import ssl
import struct
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp
import msgpack

from playing import Play

PORT = 8786
LOOK = 1.0
HELLO = {"compression": None, "python": [3, 11, 0], "pickle-protocol": 5}
Object = dict[str, Any]


class Cluster:
    """What a scheduler knows."""

    def __init__(self) -> None:
        self.pods: dict[str, str] = {}
        self.began = time.monotonic()
        self.state: list[Object] = []
        self.version = 0
        self.next_look = 0.0
        self.lead = 0
        self.drained: set[str] = set()
        self.gone: set[str] = set()
        self.changed = asyncio.Event()
        #: By uid: runs that are open here.
        self.plays: dict[str, Play] = {}
        self.told: tuple[int, int] = (0, 0)

    def look(self) -> None:
        now = time.monotonic()
        if now < self.next_look:
            return
        self.next_look = now + LOOK
        self.changed.clear()
        state: list[Object] = [
            {
                "name": name, "address": f"tcp://{address}:8788", "threads": 1, "resources": {}, "tasks": 0,
                "status": "closing_gracefully" if name in self.drained else "running", "certificate": None,
            }
            for name, address in sorted(self.pods.items())
            if name not in self.gone
        ]
        told = (len(self.plays), sum(play.unfinished for play in self.plays.values()))
        if state != self.state or told != self.told or not self.version:
            self.state, self.told = state, told
            self.version += 1

    def change(self) -> None:
        self.changed.set()


class Simulated:
    """All of them."""

    def __init__(self, config: Object, step: float) -> None:
        self.config = config
        self.step = step
        #: What a storage would have of runs, by uid.
        self.journals: dict[str, Object] = {}
        #: Set unless steps are held.
        self.going = asyncio.Event()
        self.going.set()
        self.clusters: dict[tuple[str, str], Cluster] = {}
        self.schedulers: dict[str, tuple[str, str]] = {}
        self.secrets: dict[tuple[str, str], ssl.SSLContext] = {}
        self.instances: dict[str, str] = {}
        self.news = asyncio.Condition()
        self.polled: set[tuple[str, str]] = set()
        self.connections = self.streams = self.polls = self.calls = 0
        self.serving: set[asyncio.Task[None]] = set()

    # ------------------------------------------------------------------ pods

    def session(self) -> aiohttp.ClientSession:
        user, cluster = self.config["users"][0]["user"], self.config["clusters"][0]["cluster"]
        context = ssl.create_default_context(cafile=cluster["certificate-authority"])
        context.load_cert_chain(user["client-certificate"], user["client-key"])
        connector = aiohttp.TCPConnector(ssl=context, limit=20)
        return aiohttp.ClientSession(cluster["server"], connector=connector, timeout=aiohttp.ClientTimeout(None))

    async def watch(self) -> None:
        """Follows the pods of schedulers and workers, for ever."""
        async with self.session() as api:
            self.api = api
            version = ""
            while True:
                if not version:
                    async with api.get("/api/v1/pods?labelSelector=daskade.dev/cluster") as answer:
                        page = await answer.json()
                    version = page["metadata"]["resourceVersion"]
                    for pod in page["items"]:
                        await self.see("ADDED", pod)
                query = f"labelSelector=daskade.dev/cluster&watch=1&resourceVersion={version}&timeoutSeconds=3000"
                async with api.get(f"/api/v1/pods?{query}", read_bufsize=1 << 22) as answer:
                    async for line in answer.content:
                        event = json.loads(line)
                        if event["type"] == "ERROR":
                            version = ""
                            break
                        version = event["object"]["metadata"]["resourceVersion"]
                        await self.see(event["type"], event["object"])

    async def see(self, kind: str, pod: Object) -> None:
        meta, status = pod["metadata"], pod.get("status", {})
        labels = meta["labels"]
        key = (meta["namespace"], labels["daskade.dev/cluster"])
        address = status.get("podIP")
        ready = any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions", []))
        here = kind != "DELETED" and "deletionTimestamp" not in meta and ready and address
        if labels["dask.org/component"] == "worker":
            cluster = self.clusters.setdefault(key, Cluster())
            if here and meta["name"] not in cluster.pods:
                cluster.pods[meta["name"]] = address
                cluster.change()
            elif not here and cluster.pods.pop(meta["name"], ""):
                cluster.change()
        elif here and self.schedulers.get(address) != key:
            self.schedulers[address] = key
            self.instances[address] = meta["uid"]
            self.clusters.setdefault(key, Cluster())
            async with self.news:
                self.news.notify_all()
        elif kind == "DELETED" and self.schedulers.get(address) == key:
            del self.schedulers[address]
            self.clusters.pop(key, None)
            self.secrets.pop(key, None)

    async def context(self, key: tuple[str, str]) -> ssl.SSLContext | None:
        """What the scheduler of a cluster shows; none without TLS."""
        if key not in self.secrets:
            async with self.api.get(f"/api/v1/namespaces/{key[0]}/secrets/{key[1]}-tls") as answer:
                if answer.status == 404:
                    return None
                data = (await answer.json())["data"]
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(cadata=base64.b64decode(data["ca.crt"]).decode())
            with tempfile.TemporaryDirectory() as folder:
                for name in ("tls.crt", "tls.key"):
                    (Path(folder) / name).write_bytes(base64.b64decode(data[name]))
                context.load_cert_chain(Path(folder) / "tls.crt", Path(folder) / "tls.key")
            self.secrets[key] = context
        return self.secrets[key]

    # ------------------------------------------------------------------ connections

    async def serve(self) -> None:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # All addresses, of the loopback device alone.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
        listener.bind(("0.0.0.0", PORT))
        listener.listen(4096)
        listener.setblocking(False)
        loop = asyncio.get_running_loop()
        while True:
            connection, _ = await loop.sock_accept(listener)
            connection.setblocking(False)
            task = asyncio.create_task(self.talk(connection))
            self.serving.add(task)
            task.add_done_callback(self.serving.discard)

    async def talk(self, connection: socket.socket) -> None:
        address = connection.getsockname()[0]
        try:
            async with self.news:
                # The operator may have seen the pod first.
                known = self.news.wait_for(lambda: address in self.schedulers)
                await asyncio.wait_for(known, 2)
            key = self.schedulers[address]
            context = await self.context(key)
        except (TimeoutError, asyncio.TimeoutError):
            connection.close()
            return
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        self.connections += 1
        transport: Any = None
        try:
            transport, _ = await loop.connect_accepted_socket(lambda: protocol, connection, ssl=context)
            writer = asyncio.StreamWriter(transport, protocol, reader, loop)
            send(writer, HELLO)
            await receive(reader)
            while True:
                message = await receive(reader)
                if message.get("op") == "daskade-events":
                    await self.stream(key, address, message, reader, writer)
                    break
                reply = await self.answer(key, address, message)
                if message.get("reply"):
                    send(writer, reply)
        except (OSError, asyncio.IncompleteReadError, ssl.SSLError):
            pass
        finally:
            self.connections -= 1
            if transport is not None:
                transport.close()

    async def answer(self, key: tuple[str, str], address: str, message: Object) -> Any:
        cluster = self.clusters[key]
        operation = message.get("op")
        if operation == "daskade-cluster":
            self.polls += 1
            self.polled.add(key)
            return await self.poll(cluster, self.instances[address], message)
        self.calls += 1
        if operation == "daskade-drain":
            cluster.drained.update(message["names"])
            cluster.change()
            return {"status": "OK"}
        if operation == "daskade-retire":
            cluster.gone.update(message["names"])
            cluster.change()
            return {"status": "OK", "closed": list(message["names"]), "busy": []}
        return await self.of_a_run(cluster, address, message)

    # ------------------------------------------------------------------ runs

    async def of_a_run(self, cluster: Cluster, address: str, message: Object) -> Any:
        """An operation of a run, as the runtime in a scheduler carries it out."""
        operation, instance = message.get("op"), self.instances[address]
        if operation == "daskade-hello":
            return {
                "status": "OK", "protocol": [1, 1], "runtime": "simulated", "instance": instance, "dask": "2026.8.0",
                "python": "3.11.2", "runs": {uid: play.epoch for uid, play in cluster.plays.items()},
            }
        uid = str(message.get("run", ""))
        if operation == "daskade-open":
            known = self.journals.get(uid)
            if (known is not None) == message["create"]:
                reason = "RunExists" if message["create"] else "RunNotFound"
                return {"status": "error", "reason": reason, "message": "as simulated"}
            journal = self.journals.setdefault(uid, {"epoch": 0, "committed": [], "final": None})
            journal["epoch"] += 1
            new = Play(journal, self.step, self.going, cluster.state)
            if journal["final"] is None:
                cluster.plays[uid] = new
            return new.opened(instance)
        play = cluster.plays.get(uid)
        if play is None:
            return {"status": "error", "reason": "RunNotFound", "message": "as simulated"}
        if message.get("epoch") not in (None, play.epoch):
            return {"status": "error", "reason": "StaleEpoch", "message": "as simulated"}
        if operation in ("daskade-close", "daskade-forget"):
            if operation == "daskade-close":
                play.journal["final"] = message["final"]
            play.end()
            del cluster.plays[uid]
            return {"status": "OK"}
        return play.answer(operation, message)

    async def stream(
        self, key: tuple[str, str], address: str, message: Object, reader: asyncio.StreamReader, writer: Any
    ) -> None:
        """The connection becomes a run's stream of events."""
        play = self.clusters[key].plays.get(message["run"])
        if play is None:
            send(writer, {"status": "error", "reason": "RunNotFound", "message": "as simulated"})
            return
        self.streams += 1
        try:
            left = asyncio.ensure_future(reader.read())
            await play.tell(lambda message: send(writer, message), self.instances[address], message, left)
            left.cancel()
        finally:
            self.streams -= 1

    async def poll(self, cluster: Cluster, instance: str, message: Object) -> Object:
        if message["lead"] < cluster.lead:
            return {"status": "error", "error": "StaleLeader", "message": f"a leader with epoch {cluster.lead} was heard"}
        cluster.lead = message["lead"]
        end = time.monotonic() + message["wait"]
        while True:
            cluster.look()
            now = time.monotonic()
            if cluster.version > message["since"] or message.get("instance") != instance or now >= end:
                break
            with contextlib.suppress(TimeoutError, asyncio.TimeoutError):
                await asyncio.wait_for(cluster.changed.wait(), end - now)
                await asyncio.sleep(max(0.0, cluster.next_look - time.monotonic()))
        return {
            "status": "OK", "version": cluster.version, "instance": instance, "runtime": "simulated",
            "dask": "2026.8.0", "python": "3.11.2", "workers": cluster.state, "demand": [], "runs": cluster.told[0],
            "clients": 0, "tasks": cluster.told[1], "idle": 0.0 if cluster.plays else now - cluster.began,
            "certificate": None,
        }

    # ------------------------------------------------------------------ commands

    async def obey(self) -> None:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := await reader.readline():
            if line.strip() == b"reset":
                self.polled.clear()
                self.polls = self.calls = 0
            elif line.strip() == b"hold":
                self.going.clear()
            elif line.strip() == b"release":
                self.going.set()
            plays = [play for cluster in self.clusters.values() for play in cluster.plays.values()]
            print(json.dumps({
                "schedulers": len(self.schedulers), "connections": self.connections, "polled": len(self.polled),
                "polls": self.polls, "calls": self.calls, "runs": len(plays), "streams": self.streams,
                "running": sum(play.running for play in plays),
            }), flush=True)


def send(writer: asyncio.StreamWriter, message: Any) -> None:
    frame = msgpack.packb(message, use_bin_type=True)
    writer.write(struct.pack("<QQQ", 16 + len(frame), 1, len(frame)) + frame)


async def receive(reader: asyncio.StreamReader) -> Object:
    (length,) = struct.unpack("<Q", await reader.readexactly(8))
    block = await reader.readexactly(length)
    (count,) = struct.unpack_from("<Q", block)
    lengths = struct.unpack_from(f"<{count}Q", block, 8)
    start = 8 + 8 * count
    return dict(msgpack.unpackb(block[start : start + lengths[0]], raw=False, strict_map_key=False))


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kubeconfig", type=Path)
    parser.add_argument("--step", type=float, default=0.0, help="seconds that a step takes")
    options = parser.parse_args()
    simulated = Simulated(json.loads(options.kubeconfig.read_text()), options.step)
    tasks = {asyncio.create_task(part()) for part in (simulated.watch, simulated.serve, simulated.obey)}
    done, rest = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in rest:
        task.cancel()
    for task in done:
        task.result()


if __name__ == "__main__":
    asyncio.run(main())
