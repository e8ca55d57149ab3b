"""`serve build`, serve/config.yaml and the RayService start the same application; by default nobody else reaches it."""

import re
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from ray.serve import scripts
from ray.serve.config import AutoscalingConfig, HTTPOptions
from ray.serve.schema import ServeDeploySchema

from jobs import shop
from rec.enrich import review_server
from tests.cluster.manifests import CLUSTER, REPOSITORY, one, read


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `serve build serve.app:graph` writes."""
    path = tmp_path_factory.mktemp("serve") / "config.yaml"
    done = CliRunner().invoke(
        scripts.build, ["serve.app:graph", "--output-path", str(path), "--app-dir", str(REPOSITORY)]
    )
    assert done.exit_code == 0, done.output
    return application(path.read_text(encoding="utf-8"))


def application(text: str) -> dict[str, Any]:
    """The only application of a Serve configuration, which must be a valid one."""
    ServeDeploySchema.model_validate(yaml.safe_load(text))
    (found,) = yaml.safe_load(text)["applications"]
    return dict(found)


@pytest.fixture(scope="module")
def written() -> str:
    """serve/config.yaml."""
    return (REPOSITORY / "serve" / "config.yaml").read_text(encoding="utf-8")


def test_what_is_written_is_what_serve_builds(built: dict[str, Any], written: str) -> None:
    mine = application(written)
    for each in built["deployments"]:
        assert "PowerOfTwoChoices" in each["request_router_config"].pop("request_router_class"), (
            "Serve's own, unsaid here"
        )
    assert [each["name"] for each in mine["deployments"]] == ["Recommender", "UserTower", "Retriever", "Ranker"]
    assert by_name(mine) == by_name(built)
    assert (mine["import_path"], mine["route_prefix"]) == (built["import_path"], built["route_prefix"])


def by_name(found: dict[str, Any]) -> dict[str, Any]:
    return {each["name"]: each for each in found["deployments"]}


def test_the_ray_service_is_the_same_and_listens_within_its_pod(written: str) -> None:
    service = one(read(CLUSTER / "base" / "rayservice.yaml"), "RayService")
    mine, there = yaml.safe_load(written), yaml.safe_load(service["spec"]["serveConfigV2"])
    assert there["http_options"].pop("host") == "0.0.0.0"
    assert mine["http_options"].pop("host") == "127.0.0.1"
    assert there == mine


def test_the_replicated_one_differs_in_its_replicas_alone(written: str) -> None:
    (patches,) = read(CLUSTER / "components" / "replicated" / "rayservice.yaml")
    values = {patch["path"]: patch.get("value") for patch in patches}
    text = values["/spec/serveConfigV2"]
    found = application(text)
    groups = "/spec/rayClusterConfig/workerGroupSpecs/0/"
    for each in found["deployments"]:
        scaled = AutoscalingConfig(**each.pop("autoscaling_config"))
        assert scaled.min_replicas == values[groups + "minReplicas"] == values[groups + "replicas"] == 2
        assert scaled.max_replicas == values[groups + "maxReplicas"] > 2, "a node for each replica"
        assert scaled.target_ongoing_requests is not None
        assert scaled.target_ongoing_requests < each["max_ongoing_requests"], "it scales before anybody is sent away"
        assert scaled.upscale_delay_s < scaled.downscale_delay_s
        assert each.pop("max_replicas_per_node") == 1
    assert found == application(written)
    assert yaml.safe_load(text)["http_options"]["host"] == "0.0.0.0"
    assert values["/spec/rayClusterConfig/enableInTreeAutoscaling"] is True, "who else would bring the nodes"


def test_one_machine_has_one_replica_of_each_stage(written: str) -> None:
    for each in application(written)["deployments"]:
        assert not {"num_replicas", "autoscaling_config"} & each.keys(), each["name"]


def test_only_this_machine_is_listened_to_by_default(written: str) -> None:
    assert yaml.safe_load(written)["http_options"]["host"] == "127.0.0.1"
    assert HTTPOptions().host == "127.0.0.1", "`serve run serve.app:graph`"
    assert shop.HOST == review_server.HOST == "127.0.0.1"


def test_no_code_but_the_shop_s_can_listen_to_other_machines() -> None:
    """Elsewhere there is no option for it, so there is nothing to refuse."""
    for folder in ("rec", "jobs", "serve"):
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            assert "--host" not in text, path
            if path.name != "shop.py":
                assert not re.search(r"0\.0\.0\.0|\[::\]|INADDR_ANY|dashboard_host", text), path
