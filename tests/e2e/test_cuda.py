"""Steps on a real GPU. Left out where the machine has none; nothing but NVIDIA's driver is needed."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.cli import Cli

# The driver's own interface, so that the test needs no Python package that brings CUDA.
CODE = '''
import ctypes, os

def cuda(name, *arguments):
    code = getattr(ctypes.CDLL("libcuda.so.1"), name)(*arguments)
    if code:
        raise RuntimeError(f"{name} gives {code}")

def count():
    found = ctypes.c_int()
    code = ctypes.CDLL("libcuda.so.1").cuInit(0)
    if code == 100:  # CUDA_ERROR_NO_DEVICE
        return 0
    cuda("cuInit", 0)
    cuda("cuDeviceGetCount", ctypes.byref(found))
    return found.value

def sees():
    """What a step that asks for no GPU sees."""
    return {"visible": os.environ.get("CUDA_VISIBLE_DEVICES"), "count": count()}

def fill(i):
    """A buffer of 256 MiB on the device, filled there and read back in part."""
    seen = count()
    device, context, size = ctypes.c_int(), ctypes.c_void_p(), 256 << 20
    name, at = ctypes.create_string_buffer(100), ctypes.c_uint64()
    cuda("cuDeviceGet", ctypes.byref(device), 0)
    cuda("cuDeviceGetName", name, 100, device)
    cuda("cuCtxCreate_v2", ctypes.byref(context), 0, device)
    cuda("cuMemAlloc_v2", ctypes.byref(at), ctypes.c_size_t(size))
    cuda("cuMemsetD32_v2", at, ctypes.c_uint(i + 41), ctypes.c_size_t(size // 4))
    back = (ctypes.c_uint32 * 1024)()
    cuda("cuMemcpyDtoH_v2", back, ctypes.c_uint64(at.value + size - 4096), ctypes.c_size_t(4096))
    cuda("cuCtxDestroy_v2", context)
    return {"values": sorted(set(back)), "device": name.value.decode(), "count": seen,
            "visible": os.environ.get("CUDA_VISIBLE_DEVICES")}

def keep(share):
    """Takes this share of the device's memory and keeps it, as caching allocators do."""
    count()
    device, context, at = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    cuda("cuDeviceGet", ctypes.byref(device), 0)
    cuda("cuCtxCreate_v2", ctypes.byref(context), 0, device)
    cuda("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
    cuda("cuMemAlloc_v2", ctypes.byref(at), ctypes.c_size_t(int(total.value * share)))
    return share

def killed(i):
    """The first attempt holds the device's memory when its time is over."""
    import pathlib, time
    mark = pathlib.Path(os.environ["MARK"])
    if not mark.exists():
        mark.touch()
        fill(i)
        device, context, at = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
        cuda("cuDeviceGet", ctypes.byref(device), 0)
        cuda("cuCtxCreate_v2", ctypes.byref(context), 0, device)
        cuda("cuMemAlloc_v2", ctypes.byref(at), ctypes.c_size_t(1 << 30))
        time.sleep(600)
    return fill(i)
'''


def devices() -> int:
    """How many GPUs the machine has."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    found = ctypes.c_int()
    return found.value if driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(found)) == 0 else 0


pytestmark = pytest.mark.skipif(devices() == 0, reason="this machine has no NVIDIA GPU")
GROUPS = [
    {"name": "cpu", "replicas": 1, "threads": 1},
    {"name": "gpu", "replicas": 1, "threads": 2, "gpu": {"count": 1}},
]


def test_steps_compute_on_the_device_that_is_theirs(cli: Cli, manifest: Callable[..., Path]) -> None:
    steps: list[dict[str, Any]] = [
        {"name": "plain", "call": "flow:sees"},
        {"name": "fill", "call": "flow:fill", "map": {"i": "$(range(6))"}, "resources": {"GPU": 1}},
        {"name": "half", "call": "flow:fill", "map": {"i": "$(range(4))"}, "resources": {"GPU": 0.5}},
    ]
    results = [{"name": name, "value": f"$(steps.{name}.output)"} for name in ("plain", "fill", "half")]
    for step in steps:
        step["output"] = {"serializer": "json"}
    path = manifest(CODE, steps, cluster={"template": {"workers": GROUPS}}, results=results)
    done = cli.run(path, "--output", "json", timeout=300)
    assert done.code == 0, done
    found = done.json["results"]
    assert found["plain"] == {"visible": "", "count": 0}, "a step that asks for no GPU sees none"
    for name in ("fill", "half"):
        for i, item in enumerate(found[name]):
            assert item["values"] == [i + 41]
            assert (item["count"], item["visible"]) == (1, "0")


def test_a_step_that_is_ended_gives_the_devices_memory_back(cli: Cli, manifest: Callable[..., Path]) -> None:
    steps = [
        {
            "name": "killed",
            "call": "flow:killed",
            "args": [1],
            "timeout": "20s",
            "retry": {"limit": 1, "backoff": {"duration": "0s"}},
            "resources": {"GPU": 1},
            "env": [{"name": "MARK", "value": str(cli.folder / "mark")}],
            "output": {"serializer": "json"},
        }
    ]
    results = [{"name": "killed", "value": "$(steps.killed.output)"}]
    path = manifest(CODE, steps, cluster={"template": {"workers": GROUPS}}, results=results)
    before, began = free(), time.monotonic()
    done = cli.run(path, "--output", "json", timeout=300)
    assert done.code == 0, done
    assert time.monotonic() - began > 20, "the first attempt was ended by its timeout"
    assert done.json["results"]["killed"]["values"] == [42]
    assert before - free() < 256 << 20, "nobody holds the device's memory any more"


def test_a_device_is_free_of_what_idle_processes_had_on_it(cli: Cli, manifest: Callable[..., Path]) -> None:
    steps = [
        {
            "name": name,
            "call": "flow:keep",
            "args": [size],
            "dependsOn": after,
            "resources": {"GPU": 1},
            "env": [{"name": "KIND", "value": name}],
            "output": {"serializer": "json"},
        }
        for name, size, after in (("first", 0.7, []), ("second", 0.7, ["first"]))
    ]
    path = manifest(CODE, steps, cluster={"template": {"workers": GROUPS}})
    done = cli.run(path, "--output", "json", timeout=300)
    assert done.code == 0, done


def free() -> int:
    """Bytes of the first device's memory that are free."""
    driver = ctypes.CDLL("libcuda.so.1")
    context, bytes_free, total = ctypes.c_void_p(), ctypes.c_size_t(), ctypes.c_size_t()
    assert driver.cuInit(0) == 0
    assert driver.cuCtxCreate_v2(ctypes.byref(context), 0, 0) == 0
    try:
        assert driver.cuMemGetInfo_v2(ctypes.byref(bytes_free), ctypes.byref(total)) == 0
    finally:
        driver.cuCtxDestroy_v2(context)
    return bytes_free.value
