"""The scripts for Argo CD, run by the interpreter that it uses and under its restrictions. No Argo CD runs here."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from support import TOP
from support.charts import ARGOCD, GOLDEN, Charts, objects

CONFIG_MAP = {"argocd": {"enabled": True}, "crds": {"enabled": False}}


def lua(*words: str, stdin: str = "", check: bool = True) -> str:
    done = subprocess.run(["argocd-lua", *words], input=stdin, capture_output=True, text=True, timeout=60)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_scripts_do_what_their_tests_say() -> None:
    assert lua("test", str(ARGOCD)).strip().endswith(", 0 failed")


def test_the_config_map_has_the_same_scripts(tmp_path: Path) -> None:
    rendered = Charts(tmp_path).render(values=CONFIG_MAP)
    (found,) = [o for o in objects(rendered) if o["kind"] == "ConfigMap"]
    (tmp_path / "cm.yaml").write_text(yaml.safe_dump(found))
    of_files, of_map = lua("test", str(ARGOCD)), lua("test", str(ARGOCD), str(tmp_path / "cm.yaml"))
    assert of_files == of_map
    # And a test of it can fail.
    found["data"]["resource.customizations.health.daskade.dev_Pipeline"] = "return {status = 'Healthy', message = ''}"
    (tmp_path / "cm.yaml").write_text(yaml.safe_dump(found))
    assert "Pipeline health testdata/invalid.yaml" in lua("test", str(ARGOCD), str(tmp_path / "cm.yaml"), check=False)


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
    assert (GOLDEN / "everything.yaml").read_text().count("action.lua: |") == 9


def test_the_examples_are_what_the_chart_takes(tmp_path: Path) -> None:
    (application,) = objects((TOP / "examples/argocd/operator.yaml").read_text())
    source, destination = application["spec"]["source"], application["spec"]["destination"]
    assert (TOP / source["path"] / "Chart.yaml").exists()
    charts = Charts(tmp_path)
    made = objects(charts.render(values=source["helm"]["valuesObject"], namespace=destination["namespace"]))
    (settings,) = [o for o in made if o["kind"] == "ConfigMap"]
    assert (settings["metadata"]["name"], settings["metadata"]["namespace"]) == ("argocd-cm", "argocd")
    # Whoever deletes the application does not delete the settings of Argo CD.
    assert "Delete=false,Prune=false" in settings["metadata"]["annotations"]["argocd.argoproj.io/sync-options"]
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
