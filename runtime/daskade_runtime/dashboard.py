"""Dask's dashboard, loaded when somebody opens it: its libraries are a third of what a scheduler imports."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
from typing import Any

from tornado import web

log = logging.getLogger("distributed.daskade")


def options(address: str) -> dict[str, Any]:
    """What makes a ``Scheduler`` serve HTTP there, without a dashboard if ``offer`` is to load it."""
    # Without its libraries Dask itself says on the page what to install.
    return {"dashboard": not _present(), "dashboard_address": address}


def offer(scheduler: Any) -> None:
    """Makes the first request for a page of the dashboard load it."""
    if _present():
        application = scheduler.http_application
        loader = web.Application([(r".*", _Load, {"scheduler": scheduler, "lock": asyncio.Lock()})])
        # Dask's own pages, such as /health and /metrics, come first.
        application.add_application(loader)


def _present() -> bool:
    return importlib.util.find_spec("bokeh") is not None


class _Load(web.RequestHandler):
    """Loads the dashboard, then sends the browser to it."""

    def initialize(self, scheduler: Any, lock: asyncio.Lock) -> None:
        self.scheduler, self.lock = scheduler, lock

    async def get(self) -> None:
        applications = self.scheduler.http_application.applications
        async with self.lock:
            if self.application in applications:
                try:
                    dashboard = await asyncio.to_thread(
                        importlib.import_module, "distributed.dashboard.scheduler"
                    )
                except Exception as error:  # whatever it is, the scheduler goes on without
                    log.exception("daskade: Dask's dashboard cannot be loaded")
                    self.set_status(500)
                    self.finish(f"Dask's dashboard cannot be loaded: {type(error).__name__}: {error}\n")
                    return
                applications.remove(self.application)
                dashboard.connect(
                    self.scheduler.http_application, self.scheduler.http_server, self.scheduler, prefix="/"
                )
        self.redirect(self.request.uri or "/")
