"""What the charts make of values: golden files, values that are refused, options of the operator, alerts."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess

import promql_parser
import pytest
import yaml

from support import TOP
from support.charts import GOLDEN, Charts, Object, check_file, leaves, objects

CASES = sorted(path.name.removesuffix(".values.yaml") for path in GOLDEN.glob("*.values.yaml"))
# Values that stand for options which the chart sets itself: the release's namespace is the operator's own.
OWN = {"--own-namespace"}
# Values whose default comes to the same among all others.
SHOWN_BELOW = [("image", "tag"), ("crds", "enabled"), ("aggregateRoles", "enabled"), ("policies", "enabled")]


@pytest.fixture(scope="session")
def charts(tmp_path_factory: pytest.TempPathFactory) -> Charts:
    return Charts(tmp_path_factory.mktemp("charts"))


def values_of(case: str) -> Object:
    return dict(yaml.safe_load((GOLDEN / f"{case}.values.yaml").read_text()))


def defaults() -> Object:
    return dict(yaml.safe_load((TOP / "charts/daskade/values.yaml").read_text()))


@pytest.mark.parametrize("case", CASES)
def test_a_golden_file_is_what_its_values_make(charts: Charts, case: str) -> None:
    check_file(GOLDEN / f"{case}.yaml", charts.render("-f", str(GOLDEN / f"{case}.values.yaml")))


def test_the_plain_manifest_is_what_the_defaults_make(charts: Charts) -> None:
    text = charts.render("--set", "crds.enabled=false")
    # Helm has no part in it.
    text = re.sub(
        r"^# Source: .*\n| *app\.kubernetes\.io/managed-by: Helm\n| *helm\.sh/chart: .*\n", "", text, flags=re.M
    )
    text = re.sub(r"^---\n(# [^\n]*\n)?---\n", r"---\n\1", text, flags=re.M)
    head = "".join(
        line + "\n"
        for line in (
            "# The operator of daskade: charts/daskade with its defaults. DASKADE_UPDATE=1 ./test chart writes it.",
            "# With the definitions: kubectl apply --server-side -k .  (in the root of the repository)",
            "#",
            "# docs/operations.md tells what each right is for, and how to serve only some namespaces.",
            "apiVersion: v1",
            "kind: Namespace",
            "metadata:",
            "  name: daskade-system",
            "  labels:",
            "    app.kubernetes.io/name: daskade",
            "    pod-security.kubernetes.io/enforce: restricted",
        )
    )
    check_file(TOP / "deploy/operator.yaml", head + text)


def test_the_kustomization_has_all_plain_manifests() -> None:
    found = yaml.safe_load((TOP / "kustomization.yaml").read_text())["resources"]
    assert found == [*sorted(f"crds/{path.name}" for path in (TOP / "crds").iterdir()), "deploy/operator.yaml"]


@pytest.mark.parametrize("case", [None, *CASES])
def test_lint_has_nothing_to_say(charts: Charts, case: str | None) -> None:
    options = ["-f", str(GOLDEN / f"{case}.values.yaml")] if case else []
    said = charts.helm("lint", "--strict", str(charts.chart), *options)
    assert "[WARNING]" not in said and "[ERROR]" not in said, said
    charts.helm("lint", "--strict", str(charts.folder / "charts/daskade-crds"))


def test_the_definitions_come_along_and_stay(charts: Charts) -> None:
    found = {o["metadata"]["name"]: o for o in objects(charts.render()) if o["kind"] == "CustomResourceDefinition"}
    assert sorted(found) == [f"{name}.daskade.dev" for name in ("daskclusters", "pipelineruns", "pipelines")]
    alone = charts.helm("template", "crds", str(charts.folder / "charts/daskade-crds"))
    for definition in objects(alone):
        assert found.pop(definition["metadata"]["name"]) == definition
        assert definition["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
        plural = definition["spec"]["names"]["plural"]
        assert [definition] == objects((TOP / f"crds/{plural}.yaml").read_text())
    assert not found


def test_every_value_does_something(charts: Charts) -> None:
    """With all values set, each that goes back to its default changes what is made."""
    everything, plain = values_of("everything"), defaults()
    given, known = leaves(everything), leaves(plain)
    # Of mappings without defaults one knows no keys.
    missing = [path for path in known if not any(other[: len(path)] == path for other in given)]
    # These exclude each other; and what is created by the chart has a case of its own.
    assert missing == [("operator", "namespaceSelector")]
    whole = charts.render(values=everything, tests=True)
    idle = []
    for path in given:
        if known.get(path) == given[path] or path in SHOWN_BELOW:
            continue
        less = copy.deepcopy(everything)
        inner = less
        for key in path[:-1]:
            inner = inner[key]
        if path in known:
            inner[path[-1]] = known[path]
        else:
            del inner[path[-1]]
        # What does not go together.
        if path == ("podDisruptionBudget", "minAvailable"):
            inner["maxUnavailable"] = 1
        elif path == ("podDisruptionBudget", "maxUnavailable"):
            inner["minAvailable"] = None
        elif path == ("service", "enabled"):
            less["serviceMonitor"]["enabled"] = False
        if charts.render(values=less, tests=True) == whole:
            idle.append(path)
    assert not idle
    tagged = copy.deepcopy(everything)
    tagged["image"]["digest"] = ""
    assert "registry.example.com/daskade/operator:1.2.3" in charts.render(values=tagged)
    switches = [path for path in SHOWN_BELOW if path[-1] in ("create", "enabled")]
    for path in (("rbac", "create"), ("serviceAccount", "create"), ("service", "enabled"), *switches):
        less = copy.deepcopy(everything)
        less[path[0]][path[1]] = path == ("crds", "enabled")
        less["serviceMonitor"]["enabled"] = False
        assert charts.render(values=less, tests=True) != whole, path


def test_every_option_of_the_operator_is_a_value(charts: Charts) -> None:
    """Each option has a value of its name, which becomes the variable that `daskade operator --help` tells."""
    said = subprocess.run(
        [os.environ["DASKADE_BIN"], "operator", "--help"], capture_output=True, text=True, check=True
    ).stdout
    variables = dict(
        re.findall(r"^\s+(?:-h, )?(--[a-z-]+) <[^\n]*\n(?:(?!\s+--).*\n)*?\s+\[env: ([A-Z_]+)=", said, flags=re.M)
    )
    assert len(variables) >= 14, said

    def value(option: str) -> str:
        first, *rest = option.removeprefix("--").split("-")
        return first + "".join(word.capitalize() for word in rest)

    assert {value(option) for option in set(variables) - OWN} == set(defaults()["operator"])
    given = values_of("everything")["operator"] | {"namespaceSelector": {"matchLabels": {"team": "data"}}}
    for option in set(variables) - OWN:
        name = value(option)
        operator = {name: given[name]}
        found = objects(charts.render(values={"operator": operator, "crds": {"enabled": False}}))
        (deployment,) = [o for o in found if o["kind"] == "Deployment"]
        env = {e["name"]: e.get("value") for e in deployment["spec"]["template"]["spec"]["containers"][0]["env"]}
        expected = ",".join(given[name]) if isinstance(given[name], list) else str(given[name])
        assert env[variables[option]] == ("team=data" if name == "namespaceSelector" else expected), option
    # The operator takes them: it gets as far as looking for a cluster.
    options = [
        "operator",
        "--own-namespace",
        "a",
        "--namespace-selector",
        selector_text(charts),
        "--listen",
        "127.0.0.1:0",
    ]
    environment = {key: text for key, text in os.environ.items() if not key.startswith(("KUBE", "DASKADE_"))}
    for name, text in given.items():
        if name not in ("watchNamespaces", "namespaceSelector", "listen", "otlpEndpoint"):
            option = "--" + re.sub("([A-Z])", lambda found: "-" + found[1].lower(), name)
            options += [option, ",".join(text) if isinstance(text, list) else str(text)]
    environment["HOME"] = "/nowhere"
    done = subprocess.run(
        [os.environ["DASKADE_BIN"], *options], capture_output=True, text=True, env=environment, timeout=60
    )
    assert done.returncode == 3 and "find a cluster" in done.stderr, done.stderr


def selector_text(charts: Charts) -> str:
    (deployment,) = [o for o in objects(charts.render(values=values_of("selector"))) if o["kind"] == "Deployment"]
    env = {e["name"]: e.get("value") for e in deployment["spec"]["template"]["spec"]["containers"][0]["env"]}
    text = str(env["DASKADE_NAMESPACE_SELECTOR"])
    assert text == "team=data,stage notin (test,try),example.com/dask,!frozen,zone in (a,b)"
    return text


REFUSED = [
    ({"replica": 2}, "replica"),
    ({"operator": {"maxRuns": 2}}, "maxRuns"),
    ({"image": {"digest": "abc"}}, "digest"),
    ({"image": {"pullPolicy": "Sometimes"}}, "pullPolicy"),
    ({"operator": {"watchNamespaces": ["Team"]}}, "watchNamespaces"),
    ({"operator": {"certificateLifetime": "a month"}}, "certificateLifetime"),
    ({"operator": {"listen": "8080"}}, "listen"),
    ({"operator": {"namespaceSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}}}, "matchExpressions"),
    ({"operator": {"allowAddress": ["dask:8786"]}}, "allowAddress"),
    ({"operator": {"maxConcurrent": 1000}}, "maxConcurrent"),
    ({"crds": {"keep": False}}, "keep"),
    ({"policies": {"actions": ["Refuse"]}}, "actions"),
    ({"policies": {"actions": ["Deny", "Warn"]}}, "Deny and Warn exclude"),
    ({"rbac": {"clusterWide": False}}, "needs operator.watchNamespaces"),
    ({"operator": {"watchNamespaces": ["a"], "namespaceSelector": {"matchLabels": {"a": "b"}}}}, "exclude each other"),
    ({"service": {"enabled": False}, "serviceMonitor": {"enabled": True}}, "needs service.enabled"),
    ({"podDisruptionBudget": {"enabled": True, "minAvailable": 1}}, "exactly one of"),
    ({"extraEnv": [{"name": "A", "value": 1}]}, "extraEnv"),
]


@pytest.mark.parametrize(("values", "word"), REFUSED, ids=[word for _, word in REFUSED])
def test_what_is_wrong_is_refused_by_name(charts: Charts, values: Object, word: str) -> None:
    said = charts.render(values=values, check=False)
    assert "Error" in said and word in said, said


@pytest.mark.parametrize("release", ["1st", "a.b"])
def test_a_name_that_no_service_may_have_is_refused(charts: Charts, release: str) -> None:
    words = ["template", release, str(charts.chart)]
    assert "fullnameOverride" in charts.helm(*words, check=False)
    charts.helm(*words, "--set", "fullnameOverride=first")


@pytest.mark.parametrize(
    "empty", [{"matchLabels": {}}, {"matchExpressions": []}, {"matchLabels": {}, "matchExpressions": []}]
)
def test_a_selector_that_selects_all_is_none(charts: Charts, empty: Object) -> None:
    operator = {"namespaceSelector": empty, "watchNamespaces": ["a"]}
    for given in (operator, {"namespaceSelector": empty}):
        found = charts.render(values={"operator": given, "crds": {"enabled": False}})
        assert "DASKADE_NAMESPACE_SELECTOR" not in found and "map[" not in found
        assert [o["metadata"]["name"] for o in objects(found) if o["kind"] == "ClusterRoleBinding"] == [
            "daskade-operator"
        ]


def test_labels_of_the_pods_do_not_break_the_selector(charts: Charts) -> None:
    labels = {"app.kubernetes.io/name": "mine", "team": "data"}
    found = objects(charts.render(values={"podLabels": labels, "crds": {"enabled": False}}))
    (deployment,) = [o for o in found if o["kind"] == "Deployment"]
    selector, template = (
        deployment["spec"]["selector"]["matchLabels"],
        deployment["spec"]["template"]["metadata"]["labels"],
    )
    assert template == {**selector, "team": "data"}


def test_without_rights_there_are_none_for_people_unless_asked_for(charts: Charts) -> None:
    given: Object = {"rbac": {"create": False}, "crds": {"enabled": False}}
    assert not [o for o in objects(charts.render(values=given)) if "Role" in o["kind"]]
    given["aggregateRoles"] = {"enabled": True}
    assert [o["kind"] for o in objects(charts.render(values=given)) if "Role" in o["kind"]] == ["ClusterRole"] * 3


@pytest.mark.parametrize("case", [None, *CASES])
def test_the_lease_can_be_given_back_when_everything_else_is_gone(charts: Charts, case: str | None) -> None:
    """What stays on uninstall is enough to write the lease, and no more."""
    found = objects(charts.render(values=values_of(case) if case else {}))
    kinds = ("ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding")
    policy = "helm.sh/resource-policy"
    stays = [
        o for o in found if o["kind"] in kinds and (o["metadata"].get("annotations") or {}).get(policy) == "keep"
    ]
    own = any(o["kind"] == "ServiceAccount" for o in found)
    assert sorted(o["kind"] for o in stays) == ["Role", "RoleBinding", *["ServiceAccount"][: int(own)]]
    of = {o["kind"]: o for o in stays}
    rule = {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get", "create", "update"]}
    assert of["Role"]["rules"] == [rule]
    assert of["RoleBinding"]["roleRef"]["name"] == of["Role"]["metadata"]["name"]
    (deployment,) = [o for o in found if o["kind"] == "Deployment"]
    account = deployment["spec"]["template"]["spec"]["serviceAccountName"]
    assert [subject["name"] for subject in of["RoleBinding"]["subjects"]] == [account]
    assert not own or of["ServiceAccount"]["metadata"]["name"] == account
    assert not any("leases" in str(o.get("rules")) for o in found if o not in stays)


def test_a_namespaced_release_has_no_object_of_the_whole_cluster(charts: Charts) -> None:
    found = objects(charts.render(values=values_of("namespaced")))
    assert all(o["metadata"].get("namespace") in ("daskade-system", "team-a", "team-b") for o in found)
    # What it needs where it serves, what it keeps in its own namespace, and the lease.
    assert sum(o["kind"] == "Role" for o in found) == 4


def test_every_expression_for_prometheus_can_be_read(charts: Charts) -> None:
    """As PromQL, and as what the chart makes of the files; which metrics there are is a test beside the metrics."""
    found = objects(charts.render(values=values_of("everything")))
    read = subprocess.run(
        ["monitoring"], input=charts.render(values=values_of("everything")), capture_output=True, text=True
    )
    assert read.stdout.split() == ["PrometheusRule", "ServiceMonitor"], read.stderr
    (rule,) = [o for o in found if o["kind"] == "PrometheusRule"]
    alerts = [alert for group in rule["spec"]["groups"] for alert in group["rules"]]
    assert len(alerts) >= 10
    for alert in alerts:
        promql_parser.parse(alert["expr"])
        assert alert["annotations"]["summary"] and alert["labels"]["severity"] in ("critical", "warning", "info")
    (board,) = [o for o in found if o["metadata"]["name"].endswith("-dashboard")]
    panels = json.loads(board["data"]["daskade.json"])["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) >= 10
    for panel in panels:
        for target in panel["targets"]:
            promql_parser.parse(target["expr"].replace("$__rate_interval", "5m"))
