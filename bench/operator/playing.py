"""One run on a simulated scheduler: takes what it is handed, and tells that it was done."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

Object = dict[str, Any]
#: Events gather for so long, as in the real runtime.
GATHER = 0.005


class Play:
    """A run that is open."""

    def __init__(self, journal: Object, step: float, going: asyncio.Event, workers: list[Object]) -> None:
        self.journal, self.step, self.going = journal, step, going
        self.epoch: int = journal["epoch"]
        self.events: list[Object] = []
        self.news = asyncio.Event()
        self.taken: set[tuple[int, int]] = set()
        self.running = 0
        self.tasks: set[asyncio.Task[None]] = set()
        self.ended = False
        for worker in workers:
            self.add("worker", state="added", group=None, **{k: worker[k] for k in ("name", "address", "threads", "resources")})

    @property
    def unfinished(self) -> int:
        return len(self.tasks)

    def opened(self, instance: str) -> Object:
        committed = [[s, i, a, None, None] for s, i, a in self.journal["committed"]]
        snapshot = {
            "committed": committed, "finished": [], "submitted": [], "adopted": [], "lengths": [], "skipped": [],
            "refused": [], "failed": [], "lost": [], "final": self.journal["final"],
        }
        return {"status": "OK", "epoch": self.epoch, "instance": instance, "cursor": 0, "snapshot": snapshot}

    def answer(self, operation: str | None, message: Object) -> Object:
        if operation == "daskade-submit":
            for s, i, a, *_ in message["items"]:
                if (s, i) not in self.taken:
                    self.taken.add((s, i))
                    task = asyncio.create_task(self.carry_out(s, i, a))
                    self.tasks.add(task)
                    task.add_done_callback(self.tasks.discard)
        elif operation == "daskade-read":
            return {
                "status": "OK", "serializer": "json", "size": 2, "digest": "0", "path": None, "bytes": None,
                "json": None,
            }
        return {"status": "OK"}

    async def carry_out(self, s: int, i: int, a: int) -> None:
        self.running += 1
        self.add("started", s=s, i=i, a=a, w="w", t=1.0)
        await asyncio.sleep(self.step)
        await self.going.wait()
        self.running -= 1
        self.add("finished", s=s, i=i, a=a, w="w", t0=1.0, t1=2.0, z=1)
        self.journal["committed"].append((s, i, a))
        self.add("committed", tasks=[[s, i, a]], seg=1)

    def add(self, kind: str, **fields: Any) -> None:
        self.events.append({"k": kind, "n": len(self.events) + 1, **fields})
        self.news.set()

    def end(self) -> None:
        self.ended = True
        for task in self.tasks:
            task.cancel()
        self.news.set()

    async def tell(self, send: Callable[[Any], None], instance: str, asked: Object, left: asyncio.Future[Any]) -> None:
        """Sends events until the run ends, or the listener has left. Acknowledgements are read and mean nothing here."""
        at, beat = int(asked.get("since") or 0), float(asked["beat"])
        send({"instance": instance, "events": [], "seq": len(self.events)})
        while not left.done():
            self.news.clear()
            batch = self.events[at:]
            if batch:
                at += len(batch)
                send({"instance": instance, "events": batch, "seq": len(self.events)})
                await asyncio.sleep(GATHER)
                continue
            if self.ended:
                send({"instance": instance, "events": [{"k": "closing"}], "seq": len(self.events)})
                return
            waiting = asyncio.ensure_future(self.news.wait())
            await asyncio.wait([waiting, left], timeout=beat, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            if not self.news.is_set():
                send({"instance": instance, "events": [], "seq": len(self.events)})
