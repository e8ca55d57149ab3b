"""Kubernetes manifests: read from files, rendered by kustomize, checked against schemas."""

import gzip
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
CLUSTER = REPOSITORY / "cluster"
SCHEMAS = Path(__file__).parent / "schemas"
JOBS = sorted(CLUSTER.glob("jobs/*.yaml"))
CRON_JOBS = [CLUSTER / "base" / "nightly.yaml", CLUSTER / "base" / "expire.yaml"]
NO_RESOURCES = {"Kustomization", "Component"}

Manifest = dict[str, Any]


@cache
def schema(name: str) -> Any:
    """A schema of the folder `schemas`."""
    return json.loads(gzip.decompress((SCHEMAS / f"{name}.json.gz").read_bytes()))


def strict(node: Any, named: bool = False) -> Any:
    """The schema without room for unknown fields; `named`: the keys are names of fields."""
    if isinstance(node, list):
        return [strict(each) for each in node]
    if not isinstance(node, dict):
        return node
    made = {key: strict(value, key == "properties" and not named) for key, value in node.items()}
    free = {"additionalProperties", "x-kubernetes-preserve-unknown-fields"}
    if not named and "properties" in node and not free & node.keys():
        made["additionalProperties"] = False
    return made


@cache
def validator(api_version: str, kind: str) -> jsonschema.Draft202012Validator:
    """Of a kind; KeyError where there is no schema of it."""
    kubernetes = schema("kubernetes")
    name = kubernetes["kinds"].get(f"{api_version} {kind}")
    if name is not None:
        return jsonschema.Draft202012Validator({"$ref": f"#/$defs/{name}", "$defs": kubernetes["$defs"]})
    path = f"{api_version.replace('/', '-')}-{kind}"
    if not (SCHEMAS / f"{path}.json.gz").exists():
        raise KeyError(f"{api_version} {kind}: add its schema to tests/cluster/schemas")
    made = strict(schema(path))
    meta = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"
    made["properties"]["metadata"] = {"$ref": f"#/$defs/{meta}"}
    return jsonschema.Draft202012Validator({**made, "$defs": kubernetes["$defs"]})


def errors(manifest: Manifest) -> list[str]:
    """What the schema of its kind has against a manifest, each with the place."""
    found = validator(manifest["apiVersion"], manifest["kind"]).iter_errors(manifest)
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message[:200]}" for error in found]


def read(path: Path) -> list[Manifest]:
    """The documents of a YAML file."""
    return [document for document in yaml.safe_load_all(path.read_text(encoding="utf-8")) if document]


def resources() -> Mapping[Path, list[Manifest]]:
    """Every file of complete resources below cluster/."""
    files = {path: read(path) for path in sorted(CLUSTER.rglob("*.yaml"))}
    return {
        path: documents
        for path, documents in files.items()
        if all(isinstance(each, dict) and each["kind"] not in NO_RESOURCES for each in documents)
    }


def tool(name: str) -> str:
    """Where a command line tool is that a package of `dev` brings, beside this Python or on the PATH."""
    found = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    assert found is not None, f"{name} is not installed: make setup"
    return found


def rendered(folder: Path) -> list[Manifest]:
    """What kustomize, which is a part of kubectl, makes of a folder."""
    done = subprocess.run([tool("kubectl"), "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def pods(node: Any) -> Iterator[dict[str, Any]]:
    """Every pod template within a manifest."""
    if isinstance(node, dict):
        if isinstance(node.get("template"), dict) and "containers" in node["template"].get("spec", {}):
            yield node["template"]
        for value in node.values():
            yield from pods(value)
    elif isinstance(node, list):
        for value in node:
            yield from pods(value)


def one(documents: list[Manifest], kind: str) -> Manifest:
    """The only one of its kind."""
    (found,) = [each for each in documents if each["kind"] == kind]
    return found


def entrypoints() -> dict[str, str]:
    """File of a RayJob or RayCronJob → command line."""
    return {name: spec["entrypoint"] for name, spec in ray_jobs().items()}


def ray_jobs() -> dict[str, Any]:
    """File of a RayJob or RayCronJob → specification of the job."""
    found = {path.stem: one(read(path), "RayJob")["spec"] for path in JOBS}
    return found | {path.stem: one(read(path), "RayCronJob")["spec"]["jobTemplate"] for path in CRON_JOBS}
