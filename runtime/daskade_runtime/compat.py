"""What differs between the supported releases of ``distributed`` on a worker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def threads(worker: Any) -> int:
    state = getattr(worker, "state", None)
    return max(int(getattr(state, "nthreads", 0) or getattr(worker, "nthreads", 1)), 1)


def resources(worker: Any) -> dict[str, float]:
    state = getattr(worker, "state", None)
    return dict(getattr(state, "total_resources", None) or getattr(worker, "total_resources", None) or {})


def memory_limit(worker: Any) -> int | None:
    manager = getattr(worker, "memory_manager", None)
    limit = (
        getattr(manager, "memory_limit", None)
        if manager is not None
        else getattr(worker, "memory_limit", None)
    )
    return int(limit) if limit else None


def local_directory(worker: Any) -> str:
    return str(getattr(worker, "local_directory", None) or worker.local_dir)


def scheduler_address(worker: Any) -> str:
    return str(worker.scheduler.address)


def address(worker: Any) -> str:
    """By which the scheduler knows the worker."""
    return str(getattr(worker, "contact_address", None) or worker.address)


def security(worker: Any) -> dict[str, Any] | None:
    """Arguments for a ``Security`` with which a client of this worker's cluster connects."""
    own = getattr(worker, "security", None)
    if own is None or not scheduler_address(worker).startswith("tls"):
        return None
    return {
        "require_encryption": True,
        "tls_ca_file": own.tls_ca_file,
        "tls_client_cert": own.tls_client_cert or own.tls_worker_cert,
        "tls_client_key": own.tls_client_key or own.tls_worker_key,
    }


def stream_closed(worker: Any) -> bool:
    """Whether the worker's stream to its scheduler was there and is no more."""
    stream = getattr(worker, "batched_stream", None)
    return bool(stream is not None and stream.closed())


def sender(worker: Any) -> Callable[[dict[str, Any]], Any]:
    """Sends one message over the worker's stream to its scheduler."""
    send = getattr(worker, "batched_send", None)
    return send if send is not None else lambda message: worker.batched_stream.send(message)
