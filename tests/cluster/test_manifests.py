"""What is in cluster/ is what KubeRay 1.7, CloudNativePG, the Prometheus operator and Kubernetes accept.

The files are checked as they are; overlays and components as kustomize renders them.
"""

import copy
import itertools
import json
import os
import re
import shlex
import shutil
import stat
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psycopg
import pytest
import ray
import yaml

from rec import __version__, allocator, config, doctor, publish
from rec.config import Index
from rec.errors import DatabaseError
from serve import metrics
from tests.bundle import tiny
from tests.cluster.manifests import (
    CLUSTER,
    REPOSITORY,
    Manifest,
    entrypoints,
    errors,
    one,
    pods,
    ray_jobs,
    read,
    rendered,
    resources,
    validator,
)

RESOURCES = {path.relative_to(CLUSTER).as_posix(): documents for path, documents in resources().items()}
OVERLAYS = sorted(path.parent for path in CLUSTER.glob("overlays/*/kustomization.yaml"))
COMPONENTS = sorted(path.parent.name for path in CLUSTER.glob("components/*/kustomization.yaml"))
ON = ("base", "overlays/cpu", "overlays/gpu")
"""What components are tried with; the overlays have `replicated` already."""
APART = {"external-postgres", "snapshots"}
"""Snapshots are of CloudNativePG's Postgres, which an external one takes the place of."""
NOT_ON_A_CLUSTER = {
    "benchmark": "measures this machine",
    "review": "a page for a person",
    "rules": "is given a file",
    "shop": "the server of one machine",
}


@pytest.mark.parametrize("file", RESOURCES)
def test_every_resource_fits_its_schema(file: str) -> None:
    for manifest in RESOURCES[file]:
        assert errors(manifest) == []
        namespace = manifest["metadata"].get("namespace", manifest["metadata"].get("name"))
        assert namespace == "shop-rec", "a file that is applied alone lands elsewhere"


def test_unknown_fields_wrong_types_and_unknown_kinds_are_refused() -> None:
    cluster = one(RESOURCES["base/raycluster.yaml"], "RayCluster")
    for path, value in {
        ("spec", "enableAutoscaling"): True,
        ("spec", "workerGroupSpecs", 0, "template", "spec", "containers", 0, "imagePullPolice"): "Always",
        ("spec", "workerGroupSpecs", 0, "maxReplicas"): "8",
        ("spec", "authOptions", "mode"): "tokens",
        ("metadata", "lables"): {},
        ("specs",): {},
    }.items():
        broken: Any = copy.deepcopy(cluster)
        within = broken
        for step in path[:-1]:
            within = within[step]
        within[path[-1]] = value
        assert len(errors(broken)) == 1, path
    with pytest.raises(KeyError, match="Deployment: add its schema"):
        validator("apps/v1", "Deployment")


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.name)
def test_every_overlay_renders_to_resources_that_fit(overlay: Path) -> None:
    documents = rendered(overlay)
    kinds = {each["kind"] for each in documents}
    assert {"RayCluster", "RayService", "RayCronJob", "NetworkPolicy", "Cluster"} <= kinds
    (group,) = one(documents, "RayService")["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    assert ("PodDisruptionBudget" in kinds) == (group["replicas"] > 1), "of one server it would block every drain"
    assert [problem for each in documents for problem in errors(each)] == []
    variant = "cuda" if overlay.name == "gpu" else "cpu"
    images = {
        c["image"]
        for each in documents
        if each["apiVersion"] == "ray.io/v1"
        for p in pods(each)
        for c in p["spec"]["containers"]
    }
    (image,) = images
    assert image.endswith(f"shop-rec:{__version__}-{variant}")
    groups = {each["groupName"] for each in one(documents, "RayCluster")["spec"]["workerGroupSpecs"]}
    assert groups == ({"cpu", "gpu"} if overlay.name == "gpu" else {"cpu"})
    recipe = one(documents, "ConfigMap")["data"]["shop.toml"]
    assert ("use_gpu" in recipe) == (overlay.name == "gpu")


def _with(components: Iterable[str], on: str, folder: Path) -> list[Manifest]:
    """What `on` with the components is, in an overlay of one's own."""
    shutil.copytree(CLUSTER, folder / "cluster")
    overlay = folder / "cluster" / "overlays" / "own"
    overlay.mkdir()
    made = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [f"../../{on}"],
        "components": [f"../../components/{each}" for each in components],
    }
    (overlay / "kustomization.yaml").write_text(yaml.safe_dump(made))
    return rendered(overlay)


def _named(documents: Iterable[Manifest]) -> set[tuple[str, str]]:
    return {(each["kind"], each["metadata"]["name"]) for each in documents}


def _goes(component: str, on: str) -> bool:
    return component != "replicated" or on == "base"


@pytest.mark.parametrize(("component", "on"), [pair for pair in itertools.product(COMPONENTS, ON) if _goes(*pair)])
def test_every_component_goes_with_an_overlay(component: str, on: str, tmp_path: Path) -> None:
    documents = _with([component], on, tmp_path)
    assert [problem for each in documents for problem in errors(each)] == []
    assert documents != rendered(CLUSTER / on), "it changes nothing"
    if component == "external-postgres":
        assert ("Cluster", "postgres") not in _named(documents)


@pytest.mark.parametrize("without", sorted(APART))
@pytest.mark.parametrize("on", ON)
def test_components_go_together(on: str, without: str, tmp_path: Path) -> None:
    """All that can be in one overlay, none of which undoes another."""
    together = [each for each in COMPONENTS if each != without and _goes(each, on)]
    documents = _with(together, on, tmp_path)
    assert [problem for each in documents for problem in errors(each)] == []
    brought = {path: _named(found) for path, found in RESOURCES.items() if path.startswith("components/")}
    for component in together:
        added = set().union(*(names for path, names in brought.items() if path.split("/")[1] == component))
        assert added <= _named(documents), component
    assert (("Cluster", "postgres") in _named(documents)) == (without == "external-postgres")
    cluster = one(documents, "RayService")["spec"]["rayClusterConfig"]
    assert cluster["tlsOptions"] == {"enabled": True}
    for pod in pods(cluster):
        (container,) = pod["spec"]["containers"]
        assert "OTEL_SERVICE_NAME" in {each["name"] for each in container["env"]}, (
            "another component's env took its place"
        )


def test_every_pod_runs_without_rights() -> None:
    found = [(file, pod) for file, documents in RESOURCES.items() for each in documents for pod in pods(each)]
    assert len(found) >= 7
    for file, pod in found:
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True, file
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, file
        for container in [*spec["containers"], *spec.get("initContainers", [])]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False, file
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}, file
            assert "memory" in container["resources"]["limits"], file
            assert not {"privileged", "hostNetwork"} & (container.keys() | spec.keys()), file


def ray_clusters() -> list[Manifest]:
    """The specs of all Ray clusters."""
    return [
        one(RESOURCES["base/raycluster.yaml"], "RayCluster")["spec"],
        one(RESOURCES["base/rayservice.yaml"], "RayService")["spec"]["rayClusterConfig"],
    ]


def test_ray_asks_for_a_token_and_has_the_version_of_the_image() -> None:
    constraints = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8")
    for spec in ray_clusters():
        assert spec["authOptions"] == {"mode": "token", "secretName": "ray-token"}
        assert f"\nray=={spec['rayVersion']}\n" in constraints
        assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_no_secret_is_in_a_manifest() -> None:
    """Each comes by reference; the guide says how it is made."""
    guide = (CLUSTER / "README.md").read_text(encoding="utf-8")
    for file, documents in RESOURCES.items():
        for each in documents:
            assert each["kind"] != "Secret", file
            text = json.dumps(each)
            for name in re.findall(r'"secretKeyRef": {[^}]*"name": "([^"]+)"', text) + re.findall(
                r'"secretName": "([^"]+)"', text
            ):
                assert f"secret generic {name}" in guide or name == "shop-tls", f"{file}: who makes {name}?"
            for pod in pods(each):
                for container in [*pod["spec"]["containers"], *pod["spec"].get("initContainers", [])]:
                    for variable in container.get("env", []):
                        assert "value" not in variable or not re.search("KEY|PASSWORD|TOKEN|URL", variable["name"]), (
                            file
                        )


def test_servers_find_their_head_again_and_answer_before_they_get_requests() -> None:
    spec = one(RESOURCES["base/rayservice.yaml"], "RayService")["spec"]
    cluster = spec["rayClusterConfig"]
    redis = one(RESOURCES["base/redis.yaml"], "Service")
    fault_tolerance = cluster["gcsFaultToleranceOptions"]
    assert fault_tolerance["redisAddress"] == f"{redis['metadata']['name']}:{redis['spec']['ports'][0]['port']}"
    assert fault_tolerance["redisPassword"]["valueFrom"]["secretKeyRef"] == {"name": "redis", "key": "password"}
    (head,) = cluster["headGroupSpec"]["template"]["spec"]["containers"]
    assert {"name": "serve", "containerPort": 8000} in head["ports"], "KubeRay makes no service without it"
    for group in cluster["workerGroupSpecs"]:
        (server,) = group["template"]["spec"]["containers"]
        assert server["startupProbe"]["httpGet"] == {"path": "/readyz", "port": "serve"}
        assert server["readinessProbe"]["httpGet"] == {"path": "/healthz", "port": "serve"}
        assert {"name": "store", "mountPath": "/store", "readOnly": True} in server["volumeMounts"]
        budget = one(RESOURCES["components/replicated/disruption.yaml"], "PodDisruptionBudget")["spec"]["selector"]
        assert budget["matchLabels"].items() <= group["template"]["metadata"]["labels"].items()


def test_redis_is_the_first_process_and_its_password_no_argument(tmp_path: Path) -> None:
    """SIGTERM reaches the first process of a container alone. A stand-in tells who it is and what it was given."""
    (pod,) = pods(RESOURCES["base/redis.yaml"])
    (container,) = pod["spec"]["containers"]
    server = tmp_path / "valkey-server"
    server.write_text('#!/bin/sh\necho "$$ $*"\ncat\n', encoding="utf-8")
    server.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PASSWORD": "a $word; 'of' signs"}
    with subprocess.Popen(
        [*container["command"], *container["args"]], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        said, _ = process.communicate()
    assert said.splitlines() == [
        f"{process.pid} -",
        "dir /data",
        "appendonly yes",
        "requirepass a $word; 'of' signs",
    ]


def test_servers_read_as_a_role_that_owns_nothing_and_ask_for_keys() -> None:
    """Of the owner's URL their cluster knows nothing; who answers at all addresses has keys, else it does not start."""
    spec = one(RESOURCES["base/rayservice.yaml"], "RayService")["spec"]
    assert '"postgres-app"' not in json.dumps(spec)
    for group in spec["rayClusterConfig"]["workerGroupSpecs"]:
        (server,) = group["template"]["spec"]["containers"]
        secrets = {each["name"]: each["valueFrom"]["secretKeyRef"] for each in server["env"]}
        assert secrets == {
            "REC_DATABASE_URL": {"name": "postgres-reader", "key": "uri"},
            "REC_API_KEYS": {"name": "api-keys", "key": "keys"},
        }
    (role,) = one(RESOURCES["base/postgres.yaml"], "Cluster")["spec"]["managed"]["roles"]
    assert role == {
        "name": "shop_reader",
        "ensure": "present",
        "login": True,
        "passwordSecret": {"name": "postgres-reader"},
    }
    assert entrypoints()["grant"].endswith(f" grant {role['name']}")


def test_servers_wait_for_the_first_bundle(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """What the init container asks ends well where a bundle is active, and else not."""
    spec = one(RESOURCES["base/rayservice.yaml"], "RayService")["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]
    (waiting,) = spec["template"]["spec"]["initContainers"]
    loop = re.fullmatch(r"until python -c '(.+)'; do sleep 10; done", waiting["args"][0])
    assert loop is not None
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE waiting")
    monkeypatch.setenv("REC_DATABASE_URL", psycopg.conninfo.make_conninfo(database_url, dbname="waiting"))
    with pytest.raises(DatabaseError, match="no bundle is active"):
        exec(loop[1], {})
    made = publish.run(tiny.make(tiny.config(tmp_path)))
    exec(loop[1], {})
    assert capfd.readouterr().out.strip() == made["bundle"]


def test_the_backup_is_complete_before_an_old_one_goes_and_restore_never_runs_by_itself() -> None:
    backup, restore = RESOURCES["components/backup/cronjobs.yaml"]
    (pod,) = pods(backup)
    (container,) = pod["spec"]["containers"]
    assert container["command"] == ["sh", "-euc"]
    first, second = container["args"][0].strip().splitlines()
    assert first.startswith("python jobs/database.py backup ")
    assert second.endswith("-delete")
    assert restore["spec"]["suspend"] is True
    assert "suspend" not in backup["spec"]


def test_only_the_head_that_scales_has_a_token_of_kubernetes() -> None:
    for spec in ray_clusters():
        groups = [*spec["workerGroupSpecs"], *([] if spec.get("enableInTreeAutoscaling") else [spec["headGroupSpec"]])]
        assert all(group["template"]["spec"]["automountServiceAccountToken"] is False for group in groups)


def test_where_servers_scale_their_head_and_nobody_else_has_one() -> None:
    for overlay in OVERLAYS:
        spec = one(rendered(overlay), "RayService")["spec"]["rayClusterConfig"]
        (group,) = spec["workerGroupSpecs"]
        head = spec["headGroupSpec"]["template"]["spec"]
        assert spec.get("enableInTreeAutoscaling", False) == (group["minReplicas"] < group["maxReplicas"]), overlay.name
        if spec.get("enableInTreeAutoscaling"):
            assert not {"serviceAccountName", "automountServiceAccountToken"} & head.keys(), "the operator gives it one"
            assert spec["autoscalerOptions"] == ray_clusters()[0]["autoscalerOptions"]
            assert "restartPolicy" not in group["template"]["spec"], "autoscaler v2 allows none but Never"
        else:
            assert head["automountServiceAccountToken"] is False
        assert group["template"]["spec"]["automountServiceAccountToken"] is False
        assert group["template"]["spec"]["serviceAccountName"] == "worker"


def test_nothing_comes_in_but_what_is_listed() -> None:
    found = [each for documents in RESOURCES.values() for each in documents if each["kind"] == "NetworkPolicy"]
    policies = {each["metadata"]["name"]: each["spec"] for each in found}
    assert len(policies) == len(found) > len(RESOURCES["base/network.yaml"]), "one of a component takes a name again"
    assert policies["nothing-comes-in"] == {"podSelector": {}, "policyTypes": ["Ingress"]}
    for name, spec in policies.items():
        assert spec["policyTypes"] == ["Ingress"], name
        for rule in spec.get("ingress", []):
            assert rule.get("from"), f"{name} lets everybody in"
            assert all(peer != {} and "ipBlock" not in peer for peer in rule["from"]), name


def test_autoscaling_starts_at_no_worker() -> None:
    spec = one(RESOURCES["base/raycluster.yaml"], "RayCluster")["spec"]
    assert spec["enableInTreeAutoscaling"] is True
    (gpu,) = [patch["value"] for patch in read(CLUSTER / "overlays/gpu/workers.yaml")[0]]
    assert gpu["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
    for group in [*spec["workerGroupSpecs"], gpu]:
        assert group["minReplicas"] == group["replicas"] == 0 < group["maxReplicas"]
        assert "restartPolicy" not in group["template"]["spec"], "autoscaler v2 allows none but Never"


def test_there_is_a_manifest_for_every_job_that_a_cluster_can_run() -> None:
    here = {path.stem for path in (REPOSITORY / "jobs").glob("*.py")}
    assert NOT_ON_A_CLUSTER.keys() <= here
    lines = entrypoints()
    assert {Path(line.split()[0]).stem for line in lines.values()} == here - NOT_ON_A_CLUSTER.keys()
    assert [name for name, line in lines.items() if name.replace("-", "_") not in line] == ["nightly"]


def test_jobs_run_on_workers_of_the_one_cluster() -> None:
    for spec in ray_jobs().values():
        assert spec["clusterSelector"] == {"ray.io/cluster": "rec"}
        assert spec["entrypointNumCpus"] == 1, "it would run on the head"


def test_entrypoints_are_executable_jobs_with_a_recipe_that_is_mounted() -> None:
    for name, line in entrypoints().items():
        job, *options = shlex.split(line)
        assert (REPOSITORY / job).stat().st_mode & stat.S_IXUSR, name
        assert options[:2] == ["--recipe", "/recipes/shop.toml"], name
    assert entrypoints()["nightly"] == entrypoints()["pipeline"]
    for spec in ray_clusters()[:1]:
        (worker,) = spec["workerGroupSpecs"][0]["template"]["spec"]["containers"]
        assert {"name": "recipes", "mountPath": "/recipes", "readOnly": True} in worker["volumeMounts"]


@pytest.mark.parametrize("recipe", sorted(CLUSTER.rglob("*.toml")), ids=lambda path: path.parent.name)
def test_recipes_are_valid(recipe: Path) -> None:
    given = config.load(str(recipe))
    assert given.name == "shop"
    assert given.store == ".rec", "the image's .rec is the shared volume"
    assert bool(doctor.gpus(given)) == (recipe.parent.name == "gpu")


ENDS = {"Counter": ("_total",), "Gauge": ("",), "Histogram": ("_bucket", "_sum", "_count")}
"""What Ray puts behind the names of its metrics."""
RAY_LABELS = {
    "ray_serve_num_http_requests_total": {"application", "route"},
    "ray_serve_num_http_error_requests_total": {"application", "route", "error_code"},
    "ray_serve_http_request_latency_ms_bucket": {"application", "le"},
    "ray_serve_deployment_processing_latency_ms_bucket": {"application", "deployment", "le"},
    "ray_serve_deployment_queued_queries": {"application", "deployment"},
    "ray_serve_deployment_replica_healthy": {"application", "deployment"},
    "ray_serve_deployment_error_counter_total": {"application", "deployment"},
    "ray_serve_num_ongoing_http_requests": set(),
}
"""Ray's own metrics and those of their labels that are used."""
MONITORING = CLUSTER / "components" / "monitoring"


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, set[str]]]:
    """The metrics of the application: labels by the name that is exported, by their own."""
    made = {}
    for kind, ends in ENDS.items():

        def note(name: str, _: str, *given: Any, ends: tuple[str, ...] = ends) -> None:
            labels = set(given[-1]) if given else set()
            made[name] = {f"ray_{name}{end}": labels | ({"le"} if end == "_bucket" else set()) for end in ends}

        monkeypatch.setattr(metrics, kind, note)
    metrics.Metrics()
    return made


def alerts() -> list[Manifest]:
    """The alerting rules."""
    groups = one(read(MONITORING / "alerts.yaml"), "PrometheusRule")["spec"]["groups"]
    return [rule for group in groups for rule in group["rules"]]


def queries() -> list[tuple[str, str]]:
    """Those of dashboard and alerts, and the text that is shown with each."""
    panels = json.loads((MONITORING / "serving.json").read_text(encoding="utf-8"))["panels"]
    shown = [(target["expr"], target["legendFormat"]) for panel in panels for target in panel["targets"]]
    return shown + [(rule["expr"], " ".join(rule["annotations"].values())) for rule in alerts()]


def enclosed(text: str) -> str:
    """From the parenthesis that `text` begins with to the one that closes it."""
    depth = 0
    for at, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return text[: at + 1]
    raise AssertionError(f"never closed: {text}")


def names(query: str) -> list[str]:
    """The metrics of a query."""
    return re.findall(r"\bray_\w+", query)


def test_metrics_of_dashboard_and_alerts_are_ray_s_and_ours(ours: dict[str, dict[str, set[str]]]) -> None:
    panels = Path(ray.__file__).parent / "dashboard" / "modules" / "metrics" / "dashboards"
    known = set(re.findall(r"\bray_\w+", (panels / "serve_dashboard_panels.py").read_text(encoding="utf-8")))
    used = {name for query, _ in queries() for name in names(query)}
    assert {name for name, exported in ours.items() if used & exported.keys()} == ours.keys(), "each has a panel"
    known |= {name for exported in ours.values() for name in exported}
    assert used <= known, used - known


def test_labels_of_dashboard_and_alerts_are_those_of_their_metrics(ours: dict[str, dict[str, set[str]]]) -> None:
    labels = RAY_LABELS | {name: found for exported in ours.values() for name, found in exported.items()}
    for query, shown in queries():
        for name, matchers in re.findall(r"\b(ray_\w+)\{([^}]*)\}", query):
            matched = set(re.findall(r'(\w+)(?:=~|!~|!=|=)"', matchers))
            assert matched, f"no matcher was read in {query}"
            assert matched <= labels[name], query
        grouped = set()
        clauses = list(re.finditer(r"\bby \(([^)]*)\) (?=\()", query))
        assert len(clauses) == len(re.findall(r"\bby\b", query)), f"not read: {query}"
        for clause in clauses:
            by = set(clause[1].split(", "))
            for name in names(enclosed(query[clause.end() :])):
                assert by <= labels[name], query
            grouped |= by
        for ignored in re.findall(r"\bignoring ?\(([^)]*)\)", query):
            assert set(ignored.split(", ")) <= grouped, query
        assert set(re.findall(r"{{ ?(?:\$labels\.)?(\w+) ?}}", shown)) <= grouped, (query, shown)


def test_the_alert_of_low_recall_has_the_promise_of_a_bundle() -> None:
    (rule,) = [rule for rule in alerts() if rule["alert"] == "ShopRecallIsLow"]
    assert f"< {Index().min_recall} " in rule["expr"]


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.name)
def test_workers_of_jobs_keep_what_they_free_as_those_of_one_machine(overlay: Path) -> None:
    groups = one(rendered(overlay), "RayCluster")["spec"]["workerGroupSpecs"]
    for group in groups:
        (worker,) = group["template"]["spec"]["containers"]
        given = {each["name"]: each.get("value") for each in worker["env"]}
        assert allocator.KEEPING.items() <= given.items(), group["groupName"]
