"""The bills of materials of both images, as `images/sbom` makes them: valid, complete, and the same each time.

``DASKADE_TEST_IMAGES`` names the folder with the images as archives: `./test image` builds them before.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from support import TOP

LOCK = TOP / "Cargo.lock"
IMAGES = Path(os.environ["DASKADE_TEST_IMAGES"])
NAMES = ("operator", "worker")
Package = tuple[str, str]


def made(name: str) -> str:
    source = f"oci-archive:{IMAGES / f'{name}.tar'}"
    return subprocess.run(
        [TOP / "images/sbom", source, f"daskade/{name}", "test"], stdout=subprocess.PIPE, text=True, check=True
    ).stdout


@pytest.fixture(scope="module")
def boms() -> dict[str, str]:
    texts = {name: made(name) for name in NAMES}
    for name, text in texts.items():
        (IMAGES / f"{name}.cdx.json").write_text(text)
    return texts


def packages(bom: str, kind: str) -> set[Package]:
    """Name and version of all components of a kind of package URL."""
    found = json.loads(bom)["components"]
    return {(part["name"], part["version"]) for part in found if part.get("purl", "").startswith(f"pkg:{kind}/")}


@pytest.mark.parametrize("name", NAMES)
def test_it_is_valid_by_the_schema(boms: dict[str, str], name: str) -> None:
    version = SchemaVersion.from_version(json.loads(boms[name])["specVersion"])
    assert JsonStrictValidator(version).validate_str(boms[name]) is None
    # The validator sees what is wrong.
    broken: dict[str, Any] = {**json.loads(boms[name]), "components": [{"name": "x"}]}
    assert JsonStrictValidator(version).validate_str(json.dumps(broken)) is not None


@pytest.mark.parametrize("name", NAMES)
def test_the_same_image_gives_the_same_bytes(boms: dict[str, str], name: str) -> None:
    assert made(name) == boms[name]


def test_the_operators_has_all_crates_that_are_compiled_into_it(boms: dict[str, str]) -> None:
    words = ["tree", "--locked", "--edges", "normal,no-proc-macro", "--target", "x86_64-unknown-linux-gnu"]
    words += ["--prefix", "none", "--format", "{p}"]
    told = subprocess.run(["cargo", *words], cwd=TOP, stdout=subprocess.PIPE, text=True, check=True)
    tree = {(found[1], found[2]) for found in re.finditer(r"(?m)^([\w-]+) v(\S+)", told.stdout)}
    assert len(tree) > 100
    said = packages(boms["operator"], "cargo")
    assert sorted(tree - said) == []
    # Beside them some that only macros use, and some that only a feature that is off would bring.
    locked = set(re.findall(r'(?m)^name = "([^"]+)"\nversion = "([^"]+)"', LOCK.read_text()))
    assert sorted(said - locked) == []


def pinned() -> set[Package]:
    text = (TOP / "images/worker/requirements.txt").read_text()
    return {(name, version) for name, version in re.findall(r"(?m)^([\w.-]+)==(\S+)", text)}


def plain(found: set[Package]) -> set[Package]:
    return {(re.sub(r"[-_.]+", "-", name).lower(), version) for name, version in found}


def test_the_workers_has_all_python_packages_that_are_installed(boms: dict[str, str]) -> None:
    required = plain(pinned())
    assert len(required) > 15
    assert sorted(required - plain(packages(boms["worker"], "pypi"))) == []


def dpkg() -> set[Package]:
    """What the package manager in the image says is installed, of the uppermost layer that has its list."""
    with tarfile.open(IMAGES / "worker.tar") as image:

        def blob(digest: str) -> bytes:
            file = image.extractfile(f"blobs/{digest.replace(':', '/')}")
            assert file is not None
            return file.read()

        index = image.extractfile("index.json")
        assert index is not None
        layers = json.loads(blob(json.load(index)["manifests"][0]["digest"]))["layers"]
        status = b""
        for layer in layers:
            with tempfile.TemporaryFile() as file:
                file.write(blob(layer["digest"]))
                file.seek(0)
                with tarfile.open(fileobj=file) as folder:
                    for member in folder:
                        if member.name.lstrip("./") == "var/lib/dpkg/status":
                            found = folder.extractfile(member)
                            assert found is not None
                            status = found.read()
    fields = [dict(re.findall(r"(?m)^(Package|Version|Status): (.*)$", each)) for each in status.decode().split("\n\n")]
    return {(each["Package"], each["Version"]) for each in fields if each.get("Status") == "install ok installed"}


def test_the_workers_has_all_debian_packages_of_its_base(boms: dict[str, str]) -> None:
    installed = dpkg()
    assert len(installed) > 50
    assert sorted(installed - packages(boms["worker"], "deb")) == []
