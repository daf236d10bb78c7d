"""The Helm chart: linted, rendered, and held against Kubernetes' own schemas."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from core.settings import Settings
from gateway.http.metrics import Metrics
from recordings.spool_metrics import SpoolCollector

pytestmark = pytest.mark.repo

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "helm" / "switchroom"
KUBERNETES = "1.37"
VALUES = ("minimal", "production")
# Kinds of operators, which are not Kubernetes' own.
OPERATORS = {"ScaledObject", "ServiceMonitor", "PodMonitor", "PrometheusRule"}
OURS = {"gateway", "worker", "streams"}
# Not read by Switchroom, but by the images beside it, or by other variables.
OTHERS = {"POD_IP", "NODE_IP", "LIVEKIT_KEYS", "LIVEKIT_WEBHOOK_API_KEY", "PGDATA"}

Object = dict[str, Any]


@pytest.fixture(scope="module")
def helm() -> str:
    return str(Path(sys.executable).with_name("helm"))


def run(helm: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        (helm, *arguments), cwd=CHART, capture_output=True, text=True, timeout=60, check=False
    )


def rendered(helm: str, values: str, *sets: str) -> list[Object]:
    arguments = [part for one in sets for part in ("--set", one)]
    done = run(helm, "template", "calls", ".", "-f", f"ci/{values}.yaml", *arguments)
    assert done.returncode == 0, done.stderr
    return [found for found in yaml.safe_load_all(done.stdout) if found]


@pytest.fixture(scope="module")
def objects(helm: str) -> dict[str, list[Object]]:
    both = {values: rendered(helm, values) for values in VALUES}
    everything = rendered(
        helm, "production", "livekit.enabled=true", "sip.enabled=true", "redis.enabled=true",
        "postgres.enabled=true", "streams.autoscaling.type=keda", "worker.autoscaling.type=hpa",
    )  # fmt: skip
    return {**both, "everything": everything}


def pods(objects: list[Object]) -> Iterator[tuple[str, Object]]:
    for one in objects:
        if one["kind"] in {"Deployment", "StatefulSet"}:
            template = one["spec"]["template"]
            yield template["metadata"]["labels"]["app.kubernetes.io/component"], template


@pytest.mark.parametrize("values", VALUES)
def test_lint(helm: str, values: str) -> None:
    done = run(helm, "lint", ".", "--strict", "-f", f"ci/{values}.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_object_is_as_kubernetes_wants_it(objects: dict[str, list[Object]]) -> None:
    kinds = set()
    for several in objects.values():
        names = [(one["kind"], one["metadata"]["name"]) for one in several]
        assert len(names) == len(set(names))
        for one in several:
            kinds.add(one["kind"])
            if one["kind"] not in OPERATORS:
                kubernetes_validate.validate(one, KUBERNETES, strict=True)
    assert OPERATORS | {"HorizontalPodAutoscaler", "Ingress", "NetworkPolicy"} <= kinds


def test_a_wrong_object_is_found(objects: dict[str, list[Object]]) -> None:
    (deployment, *_) = [one for one in objects["minimal"] if one["kind"] == "Deployment"]
    wrong = json.loads(json.dumps(deployment))
    wrong["spec"]["template"]["spec"]["containers"][0]["readinessProb"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, KUBERNETES, strict=True)


def test_no_pod_may_do_more_than_it_must(objects: dict[str, list[Object]]) -> None:
    seen = set()
    for component, pod in pods(objects["everything"]):
        seen.add(component)
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec.get("hostNetwork", False) == (component in {"livekit", "sip"})
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
            assert "readinessProbe" in container
            for variable in container.get("env", []):
                secret = re.search("SECRET|PASSWORD|API_KEY", variable["name"])
                assert not secret or "valueFrom" in variable or "$(" in variable["value"]
    assert seen == OURS | {"livekit", "sip", "redis", "postgres"}


def test_what_selects_pods_finds_them(objects: dict[str, list[Object]]) -> None:
    labels = {name: pod["metadata"]["labels"] for name, pod in pods(objects["everything"])}
    ports = {
        name: {port["name"] for each in pod["spec"]["containers"] for port in each["ports"]}
        for name, pod in pods(objects["everything"])
    }
    budgets = set()
    for one in objects["everything"]:
        spec = one.get("spec", {})
        match one["kind"]:
            case "Service" if not one["metadata"]["name"].endswith("nowhere"):
                selector, wanted = spec["selector"], {each["targetPort"] for each in spec["ports"]}
            case "PodDisruptionBudget":
                selector, wanted = spec["selector"]["matchLabels"], set()
                budgets.add(selector["app.kubernetes.io/component"])
            case "NetworkPolicy":
                selector = spec["podSelector"]["matchLabels"]
                wanted = {each["port"] for rule in spec["ingress"] for each in rule["ports"]}
            case "ServiceMonitor":
                selector, wanted = spec["selector"]["matchLabels"], set()
            case "PodMonitor":
                selector = spec["selector"]["matchLabels"]
                wanted = {each["port"] for each in spec["podMetricsEndpoints"]}
            case _:
                continue
        found = [name for name, have in labels.items() if selector.items() <= have.items()]
        assert len(found) == 1, (one["kind"], selector)
        assert wanted <= ports[found[0]], (one["kind"], one["metadata"]["name"])
    assert budgets == OURS | {"livekit", "sip"}


def test_each_variable_is_a_setting(objects: dict[str, list[Object]]) -> None:
    known = {name.upper() for name in Settings.model_fields} | OTHERS
    for several in objects.values():
        for component, pod in pods(several):
            if component in OURS:
                for container in pod["spec"]["containers"]:
                    assert {each["name"] for each in container["env"]} <= known
        (settings,) = [one for one in several if one["metadata"]["name"] == "calls-settings"]
        assert settings["data"].keys() <= known


def test_images_are_those_of_compose(objects: dict[str, list[Object]]) -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    images = {name: pod["spec"]["containers"][0]["image"] for name, pod in pods(objects["minimal"])}
    assert images == {name: compose[name]["image"] for name in images}


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (["longestCallSeconds=7200"], "a deploy would cut calls"),
        (["worker.drainSeconds=3000"], "a deploy would cut calls"),
        (["worker.terminationGracePeriodSeconds=3689"], "Kubernetes would kill calls"),
        (["streams.drainSeconds=3700"], "Kubernetes would kill calls"),
        (["gateway.terminationGracePeriodSeconds=20"], "more than shutdownGraceSeconds"),
        (
            ["worker.autoscaling.type=hpa", "worker.autoscaling.targetCalls=11"],
            "another one would never come",
        ),
        (["secret="], "the name of a Secret"),
        (["livekit.enabled=false"], "the address of your livekit-server"),
        (["redis.enabled=false"], "host:port of your Redis"),
        (["settings.LIVEKIT_API_SECRET=x"], "is a secret"),
        (["settings.AWS_SESSION_TOKEN=x"], "is a secret"),
        (["agentsConfigMap=agents"], "settings.DEFAULT_AGENT"),
        (["ingress.enabled=true"], "the ingress controller could not reach"),
        (["metrics.operator.enabled=true"], "Prometheus could not scrape"),
        (["streams.autoscaling.type=keda"], "Prometheus could not scrape"),
        (["settings.auth_required=true"], "auth_required"),
        (["worker.replica=3"], "replica"),
        (["worker.replicas=many"], "replicas"),
        (["worker.autoscaling.type=always"], "autoscaling"),
        (["sip.port=70000"], "port"),
        (["livekit.url=http://livekit"], "url"),
    ],
)
def test_it_refuses(helm: str, sets: list[str], said: str) -> None:
    arguments = [part for one in sets for part in ("--set", one)]
    done = run(helm, "template", "calls", ".", "-f", "ci/minimal.yaml", *arguments)
    assert done.returncode != 0
    assert said in done.stderr


def test_the_grace_period_that_just_suffices(helm: str) -> None:
    rendered(helm, "minimal", "worker.terminationGracePeriodSeconds=3690")


def test_a_dead_prometheus_takes_no_worker_away(objects: dict[str, list[Object]]) -> None:
    (scaled,) = [one for one in objects["production"] if one["kind"] == "ScaledObject"]
    assert scaled["spec"]["fallback"]["behavior"] == "currentReplicasIfHigher"
    (trigger,) = scaled["spec"]["triggers"]
    assert trigger["metadata"]["ignoreNullValues"] == "false"


def test_every_secret_is_refused_as_a_setting(helm: str) -> None:
    secret = [
        name.upper()
        for name, field in Settings.model_fields.items()
        if "Secret" in str(field.annotation)
    ]
    assert len(secret) > 8
    for name in [*secret, "DATABASE_URL"]:
        done = run(
            helm, "template", "x", ".", "-f", "ci/minimal.yaml", "--set", f"settings.{name}=x"
        )
        assert "is a secret" in done.stderr, name


def test_a_setting_of_yours_replaces_the_charts(helm: str) -> None:
    (settings,) = [
        one
        for one in rendered(helm, "production", "settings.PUBLIC_URL=https://example.org")
        if one["metadata"]["name"] == "calls-settings"
    ]
    assert settings["data"]["PUBLIC_URL"] == "https://example.org"
    text = run(helm, "template", "calls", ".", "-f", "ci/production.yaml").stdout
    assert len(re.findall("^  PUBLIC_URL:", text, re.M)) == 1


def test_an_address_for_nat_replaces_stun(helm: str) -> None:
    (sip,) = [
        one
        for one in rendered(helm, "minimal", "sip.nat1To1Ip=198.51.100.7")
        if one["kind"] == "ConfigMap" and one["metadata"]["name"] == "calls-sip"
    ]
    told = yaml.safe_load(sip["data"]["config.yaml"])
    assert (told["use_external_ip"], told["nat_1_to_1_ip"]) == (False, "198.51.100.7")


def test_an_alert_asks_only_for_workers_that_there_are(helm: str) -> None:
    (rules,) = [
        one
        for one in rendered(helm, "production", "streams.enabled=false")
        if one["kind"] == "PrometheusRule"
    ]
    (alert,) = [
        rule
        for rule in rules["spec"]["groups"][0]["rules"]
        if rule["alert"] == "SwitchroomNoPlaces"
    ]
    assert 'kind=~"room"' in alert["expr"]


def test_dashboard_and_alerts_ask_for_metrics_that_exist(objects: dict[str, list[Object]]) -> None:
    registry = Metrics().registry
    registry.register(SpoolCollector(ROOT / "no such folder"))
    known = {metric.name for metric in registry.collect()}
    (dashboard,) = [one for one in objects["production"] if "dashboard" in one["metadata"]["name"]]
    (rules,) = [one for one in objects["production"] if one["kind"] == "PrometheusRule"]
    text = json.dumps(json.loads(dashboard["data"]["switchroom.json"])) + json.dumps(rules)
    asked = set(re.findall(r"switchroom_[a-z_]+", text))
    assert len(asked) > 8
    bare = {re.sub("_(total|bucket|count|sum)$", "", name) for name in asked}
    assert bare <= known


def test_each_alert_has_its_runbook(objects: dict[str, list[Object]]) -> None:
    (rules,) = [one for one in objects["production"] if one["kind"] == "PrometheusRule"]
    titles = re.findall(r"^### (Switchroom\w+)$", (ROOT / "docs/kubernetes.md").read_text(), re.M)
    (group,) = rules["spec"]["groups"]
    assert [rule["alert"] for rule in group["rules"]] == titles
    for rule in group["rules"]:
        assert rule["annotations"]["runbook"] == f"docs/kubernetes.md#{rule['alert'].lower()}"
