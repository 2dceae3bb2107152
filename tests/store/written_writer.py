"""The other side of `written.rs`: takes lines of JSON, writes a run for each into the folder that is its
argument, and answers what its own reader makes of it.

`{"result": …, "ends": …}`: a step that returns the result, and the run ends with the other.
`{"elements": …}`: a step whose output is a list of so many, over which others map.
"""

from __future__ import annotations

import json
import sys
import tempfile
from typing import Any

from daskade_runtime import serialize
from daskade_runtime.closing import closing
from daskade_runtime.errors import StepFailure
from daskade_runtime.journal import Journal, read_all
from daskade_runtime.live import json_text
from daskade_runtime.pages import value_of
from daskade_runtime.storage import open_store


def handle(output: serialize.Output) -> dict[str, Any]:
    index = {"n": output.n, "x": output.offsets, "m": output.digests}
    where = {"u": None if output.path is None else "data/0/-1-1-aa", "w": "tcp://10.0.0.7:40001", "b": output.data}
    return {"z": output.size, "d": output.digest, "s": output.serializer, **where, **index}


def write(url: str, run: str, told: dict[str, Any]) -> dict[str, Any]:
    container = "elements" in told
    value = [1] * told["elements"] if container else told["result"]
    with tempfile.TemporaryDirectory() as folder:
        try:
            result = None if container else serialize.result_of(value, True)
            output = serialize.dump(value, "json", container, 65536, f"{folder}/out")
        except StepFailure as failure:
            return {"refused": failure.message, "class": failure.class_}
    journal, _ = Journal.open(open_store({"url": url}), run, None, True, {"spec": b"{}", "spec_digest": "aa"})
    text = json_text(result)
    journal.append([["committed", 0, -1, 1, handle(output), "cpu-0-1", 1.0, 2.0, None, text]])
    final = {"state": "Succeeded", "results": {"small": [1], "ends": told.get("ends")}}
    for record in closing(final, f"{url}/runs/{run}/journal"):
        journal.append([record])
    folded = read_all(open_store({"url": url}), run)
    assert folded.final is not None
    committed = folded.committed[0, -1]
    if container:
        return {"run": run, "read": committed[1]["n"]}
    return {"run": run, "read": [*(value_of(committed[6]) or ()), folded.final["results"]["ends"]]}


def main() -> None:
    for number, line in enumerate(sys.stdin):
        print(json.dumps(write(f"file://{sys.argv[1]}", f"run-{number}", json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
