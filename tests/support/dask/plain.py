"""Clusters that daskade did not start: by Dask's own command line, without the runtime."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from support.certificates import Certificates
from support.dask import forks
from support.dask.forks import Fork
from support.waiting import until


@dataclass
class Plain:
    """A scheduler and workers, with their logs in a folder."""

    folder: Path
    tls: Certificates | None
    python: str
    env: dict[str, str]
    address: str = ""
    processes: list[Fork | subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, module: str, *words: str, **env: str) -> Path:
        """Starts a process; its log."""
        log = self.folder / f"plain-{len(self.processes)}.log"
        all_of_it = [f"distributed.cli.{module}", *words, "--no-dashboard", *(self.tls.options() if self.tls else [])]
        own = {**{name: value for name, value in os.environ.items() if name != "PYTHONPATH"}, **self.env, **env}
        if self.python == sys.executable:
            self.processes.append(Fork(forks.PLAIN, all_of_it, own, log, self.folder))
            return log
        command = [self.python, "-W", "ignore", "-m", *all_of_it]
        with log.open("wb") as out:
            process = subprocess.Popen(
                command, stdout=out, stderr=out, env=own, cwd=self.folder, start_new_session=True
            )
        self.processes.append(process)
        return log

    def logs(self) -> str:
        return "\n".join(path.read_text(errors="replace")[-3000:] for path in sorted(self.folder.glob("plain-*.log")))

    def stop(self) -> None:
        """Asks all to end, which each must do."""
        for process in self.processes:
            process.terminate()
        hung = []
        for process in self.processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                hung.append(process.pid)
        assert not hung, f"{len(hung)} processes did not end on SIGTERM:\n{self.logs()}"


@contextlib.contextmanager
def plain(
    folder: Path,
    workers: int = 1,
    *words: str,
    tls: Certificates | None = None,
    python: str = sys.executable,
    env: dict[str, str] | None = None,
    nanny: bool = False,
    **scheduler_env: str,
) -> Iterator[Plain]:
    """``words`` and ``scheduler_env`` are the scheduler's alone. Each worker, ``other-worker-0x`` and so on, has one thread.

    ``nanny``: as Dask does by default, each is started by a process that watches over it.
    """
    made = Plain(folder, tls, python, env or {})
    logs: list[Path] = []
    scheme = "tls" if tls else "tcp"
    try:
        log = made.start("dask_scheduler", "--host", f"{scheme}://127.0.0.1", "--port", "0", *words, **scheduler_env)

        def address() -> str | None:
            said = log.read_text(errors="replace") if log.exists() else ""
            assert made.processes[0].poll() is None, said
            found = re.search(rf"Scheduler at:\s+({scheme}://\S+)", said)
            return found and found[1]

        made.address = until("the scheduler tells its address", address, 60)
        for at in range(workers):
            more = ["--name", f"other-worker-{at}x", *([] if nanny else ["--no-nanny"])]
            logs.append(made.start("dask_worker", made.address, "--nthreads", "1", *more))
        if nanny:  # in old releases one that is told to end while its worker starts does not
            until("all workers register", lambda: all("Registered to" in log.read_text() for log in logs), 60)
        yield made
    finally:
        made.stop()
