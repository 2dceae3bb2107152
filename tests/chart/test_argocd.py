"""The scripts for Argo CD, run by the interpreter that it uses and under its restrictions. No Argo CD runs here."""

from __future__ import annotations

import subprocess
import textwrap
from pathlib import Path

import pytest
import yaml

from support import TOP
from support.charts import ARGOCD, ARGOCD_PATCH, Charts, check_file, objects

HEAD = """\
# Health checks and actions for Argo CD: merge this into argocd-cm, see docs/gitops.md. No other key is changed.
# Made from resource_customizations. DASKADE_UPDATE=1 ./test chart writes it.
apiVersion: v1
kind: ConfigMap
metadata:
  name: argocd-cm
data:
"""


def lua(*words: str, stdin: str = "", check: bool = True) -> str:
    done = subprocess.run(["argocd-lua", *words], input=stdin, capture_output=True, text=True, timeout=60)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_scripts_do_what_their_tests_say() -> None:
    assert lua("test", str(ARGOCD)).strip().endswith(", 0 failed")


def test_the_patch_has_the_same_scripts(tmp_path: Path) -> None:
    keys = [key for kind in sorted((ARGOCD / "daskade.dev").iterdir()) for key in keys_of(kind)]
    check_file(ARGOCD_PATCH, HEAD + "".join(keys))
    of_files, of_patch = lua("test", str(ARGOCD)), lua("test", str(ARGOCD), str(ARGOCD_PATCH))
    assert of_files == of_patch
    # And a test of it can fail.
    (found,) = objects(ARGOCD_PATCH.read_text())
    found["data"]["resource.customizations.health.daskade.dev_Pipeline"] = "return {status = 'Healthy', message = ''}"
    (tmp_path / "cm.yaml").write_text(yaml.safe_dump(found))
    assert "Pipeline health testdata/invalid.yaml" in lua("test", str(ARGOCD), str(tmp_path / "cm.yaml"), check=False)


def keys_of(kind: Path) -> list[str]:
    """The keys of argocd-cm for the scripts of a kind, as YAML."""

    def block(file: Path, depth: int) -> str:
        return textwrap.indent(file.read_text().strip() + "\n", " " * depth)

    actions = [
        f"      - name: {action.parent.name}\n        action.lua: |\n{block(action, 10)}"
        for action in sorted(kind.glob("actions/*/action.lua"))
    ]
    return [
        f"  resource.customizations.health.daskade.dev_{kind.name}: |\n{block(kind / 'health.lua', 4)}",
        f"  resource.customizations.actions.daskade.dev_{kind.name}: |\n    discovery.lua: |\n",
        f"{block(kind / 'actions/discovery.lua', 6)}    definitions:\n{''.join(actions)}",
    ]


def test_every_script_has_tests() -> None:
    for kind in ARGOCD.glob("daskade.dev/*"):
        actions = yaml.safe_load((kind / "actions/action_test.yaml").read_text())
        assert {test["action"] for test in actions["actionTests"]} == {
            p.parent.name for p in kind.glob("actions/*/action.lua")
        }
        used = [test["inputPath"] for part in ("discoveryTests", "actionTests") for test in actions[part]]
        used += [test["expectedOutputPath"] for test in actions["actionTests"]]
        assert {f"testdata/{path.name}" for path in kind.glob("actions/testdata/*")} == set(used)
        health = yaml.safe_load((kind / "health_test.yaml").read_text())["tests"]
        assert {f"testdata/{path.name}" for path in kind.glob("testdata/*")} == {test["inputPath"] for test in health}
    assert ARGOCD_PATCH.read_text().count("action.lua: |") == 9


def test_the_examples_are_what_the_chart_takes(tmp_path: Path) -> None:
    (application,) = objects((TOP / "examples/argocd/operator.yaml").read_text())
    source, destination = application["spec"]["source"], application["spec"]["destination"]
    assert (TOP / source["path"] / "Chart.yaml").exists()
    charts = Charts(tmp_path)
    made = objects(charts.render(values=source["helm"]["valuesObject"], namespace=destination["namespace"]))
    # Argo CD's own settings are none of its business: what an application brings it also takes away.
    assert {o["metadata"].get("namespace", destination["namespace"]) for o in made} == {destination["namespace"]}
    (many,) = objects((TOP / "examples/argocd/applicationset.yaml").read_text())
    assert many["spec"]["template"]["spec"]["destination"]["namespace"] == "{{ .path.basename }}"


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("return {ok = require('os').time() > 0}", '{"ok":true}'),
        ("return {require('os').execute('true')}", "attempt to call a non-function"),
        ("return {io.open('/etc/passwd')}", "attempt to index a non-table object(nil)"),
        ("return {string.rep('a', 2)}", "attempt to index a non-table object(nil)"),
        ("return {os.getenv('HOME')}", "attempt to index a non-table object(nil)"),
        ("while true do end", "context deadline exceeded"),
        ("return 1", "a script returns a table"),
    ],
)
def test_a_script_gets_no_more_than_argo_cd_gives(tmp_path: Path, script: str, said: str) -> None:
    (tmp_path / "script.lua").write_text(script)
    assert said in lua("script", str(tmp_path / "script.lua"), check=False)
