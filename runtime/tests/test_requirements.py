"""Requirements against what is installed here."""

from __future__ import annotations

import distributed
import pytest

from daskade_runtime.requirements import lacking


@pytest.mark.parametrize(
    "wanted",
    [
        [],
        ["distributed"],
        ["Distributed", "dask >= 2023.3, < 2999", "msgpack"],
        ["no-such-package; python_version < '3.0'", "no-such-package; sys_platform == 'win32'"],
        ["distributed @ https://example.com/distributed.whl"],
        [f"distributed=={distributed.__version__}"],
    ],
)
def test_what_is_there_is_not_lacking(wanted: list[str]) -> None:
    assert lacking(wanted) == []


def test_what_is_missing_or_of_another_version_is_named() -> None:
    url = "no_such @ https://example.com/x.whl"
    wanted = ["no-such-package>=1", "distributed", "distributed<2000", url, "=1"]
    found = lacking(wanted)
    assert found[:3] == [
        "no-such-package (wanted: no-such-package>=1)",
        f"distributed (wanted: distributed<2000; there is {distributed.__version__})",
        f"no_such (wanted: {url})",
    ]
    assert found[3].startswith("=1 (not a requirement: ") and len(found) == 4


def test_what_an_extra_brings_is_wanted_too(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["msgpack", "absent>=2; extra == 'more'", "toolz; extra == 'more'", "other; extra == 'less'"]
    found = {"distributed": lines}
    monkeypatch.setattr("daskade_runtime.requirements.requires", lambda name: found.get(name))
    assert lacking(["distributed[more]"]) == ["absent (wanted: distributed[more])"]
    assert lacking(["distributed"]) == []
