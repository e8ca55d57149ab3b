"""The guide's scaling table follows from its formula and measurements, and the manifests' limits from the table."""

import math
import re
import tomllib
from pathlib import Path

import pytest
import yaml

from rec.config.operate import Index
from rec.evaluate import growth
from rec.index.connections import SETTINGS
from rec.index.vector_table import build_mb
from tests.cluster.manifests import CLUSTER, REPOSITORY, Manifest, one, read, rendered

GUIDE = (CLUSTER / "README.md").read_text(encoding="utf-8")
RATE, RATE_MS = 33, 10.3
"""Requests/s of two cores that client, server and Postgres share, and the answer's median at about that size."""
SIZES = (10_000, 100_000, 1_000_000)
BYTES_A_PRODUCT, WIDTH = 885, 128
"""Of vectors and their index; numbers of a vector."""
BESIDE_SERVERS = 40
"""Connections of jobs, of the operator and of the standby."""
OVERLAYS = sorted(path.parent for path in CLUSTER.glob("overlays/*/kustomization.yaml"))


def _row(start: str) -> list[str]:
    (line,) = [line for line in GUIDE.splitlines() if line.startswith(f"| {start}")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def _measured_ms() -> dict[int, tuple[float, float]]:
    """Products → medians of an answer and of its retrieval, of the guide's table of stages."""
    cells = [cell.removesuffix(" ms").split("; ") for cell in _row("an answer, in process")[1:4]]
    return {size: (float(whole), float(retrieval)) for size, (whole, retrieval) in zip(SIZES, cells, strict=True)}


def _unique_gib() -> dict[int, float]:
    told = re.search(r"have ([\d.]+), ([\d.]+) and ([\d.]+) GiB that they share with nobody", GUIDE)
    assert told is not None
    return dict(zip(SIZES, map(float, told.groups()), strict=True))


def memory(unique_gib: float) -> int:
    """A server's limit in GiB."""
    return math.ceil(1.25 * (2 * unique_gib - 1.8))


def _constant(module: str, name: str) -> int:
    found = re.search(rf"^{name} = (\d+)$", (REPOSITORY / "serve" / f"{module}.py").read_text(encoding="utf-8"), re.M)
    assert found is not None, name
    return int(found[1])


def connections() -> int:
    """Database connections of one server: a replica of each stage."""
    found = 0
    for module in ("app", "stages"):
        sizes = re.findall(
            r"connections\(store, size=(\w+)\)", (REPOSITORY / "serve" / f"{module}.py").read_text(encoding="utf-8")
        )
        assert sizes, module
        found += sum(int(size) if size.isdigit() else _constant(module, size) for size in sizes)
    return found


def postgres_gib(products: int, servers: int, index: Index, shared_gib: float) -> float:
    """Memory of one Postgres while it builds an index and every connection that searches walks as far as it may."""
    scan_mib = int(SETTINGS["work_mem"]) * int(SETTINGS["hnsw.scan_mem_multiplier"]) / 1024
    walks = _constant("stages", "CONNECTIONS") * servers * scan_mib * min(1, products / 100_000)
    held = 10 * 2 * connections() * servers
    return shared_gib + 0.25 + (build_mb(products, WIDTH, index) + walks + held) / 1024


def test_the_scaling_table_is_what_its_formula_gives() -> None:
    times, unique = _measured_ms(), _unique_gib()
    table = re.findall(
        r"^\| ([\d,]+) \| (\d+) \| (\d+) \| (\d+) GiB \| (\d+) CPU, (\d+) GiB \| ([\d,]+) \|$", GUIDE, re.M
    )
    rows = [[int(cell.replace(",", "")) for cell in row] for row in table]
    assert [row[:2] for row in rows] == [[size, rate] for size in SIZES for rate in (10, 100, 500)]
    for products, rate, *told in rows:
        whole, retrieval = times[products]
        servers = math.ceil(rate / (RATE * RATE_MS / whole)) + 1
        gib = memory(unique[products])
        shared = max(1, BYTES_A_PRODUCT * products / 2**30)
        held = math.ceil(postgres_gib(products, servers, Index(), shared))
        cpus = math.ceil(rate * retrieval / 1e3 / 0.7)
        month = 730 * (0.04 * (2 * servers + 2 * cpus) + 0.005 * (servers * gib + 2 * held))
        assert told == [servers, gib, cpus, held, round(month)], (products, rate)


def _servers(service: Manifest) -> Manifest:
    (group,) = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    (server,) = group["template"]["spec"]["containers"]
    return dict(server["resources"]["limits"])


def test_limits_of_servers_hold_the_catalogues_that_the_guide_says() -> None:
    """Between the two larger measured sizes by the line through them."""
    unique = _unique_gib()
    said = re.search(
        r"rayservice\.yaml` \((\d+) GiB\) are enough for ([\d,]+) products, .* \((\d+) GiB\) for ([\d,]+)\.", GUIDE
    )
    assert said is not None
    base = _servers(one(read(CLUSTER / "base" / "rayservice.yaml"), "RayService"))
    assert base == {"cpu": "2", "memory": f"{said[1]}Gi"}
    laptop = yaml.safe_load((CLUSTER / "overlays" / "laptop" / "kustomization.yaml").read_text(encoding="utf-8"))
    (patch,) = [each["patch"] for each in laptop["patches"] if each["target"]["kind"] == "RayService"]
    assert f'limits: {{cpu: "2", memory: {said[3]}Gi}}' in patch
    slope = (unique[1_000_000] - unique[100_000]) / 900_000
    for gib, products in ((said[1], said[2]), (said[3], said[4])):
        held = unique[100_000] + slope * (int(products.replace(",", "")) - 100_000)
        assert memory(held) <= int(gib)


GIB = {"Gi": 1, "GB": 1, "Mi": 1 / 1024, "MB": 1 / 1024}
"""By unit of Kubernetes and of Postgres, whose GB is 2^30 bytes."""


def _gib(quantity: str) -> float:
    return int(quantity[:-2]) * GIB[quantity[-2:]]


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.name)
def test_postgres_has_connections_and_memory_for_all_servers_that_there_may_be(overlay: Path) -> None:
    """Twice the servers have connections while a new image or configuration comes up beside the old one."""
    documents = rendered(overlay)
    spec = one(documents, "Cluster")["spec"]
    given = spec["postgresql"]["parameters"]
    (group,) = one(documents, "RayService")["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    servers = group["maxReplicas"]
    assert 2 * connections() * servers + BESIDE_SERVERS <= int(given["max_connections"])
    index = Index(**tomllib.loads(one(documents, "ConfigMap")["data"]["shop.toml"]).get("index", {}))
    products = 100_000 if overlay.name == "laptop" else 500_000
    needed = postgres_gib(products, servers, index, _gib(given["shared_buffers"]))
    assert needed <= _gib(spec["resources"]["limits"]["memory"])
    assert BYTES_A_PRODUCT * products / 2**30 <= _gib(given["shared_buffers"])


def test_the_guide_says_what_connections_servers_have() -> None:
    assert f"{2 * connections()} × servers + {BESIDE_SERVERS}" in GUIDE
    assert f"{connections()} of each server" in (CLUSTER / "base" / "postgres.yaml").read_text(encoding="utf-8")


def _stages() -> list[list[str]]:
    """The rows of the table of stages that are stages."""
    lines = GUIDE[GUIDE.index("| stage |") :].split("\n\n")[0].splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    found = [cells for cells in rows if re.match(r"[\d,]+ s,", cells[1])]
    assert len(found) == 11
    return found


def _taken(cell: str) -> growth.Taken:
    seconds, gib = re.fullmatch(r"([\d,]+) s, ([\d.]+) GiB", cell).groups()  # type: ignore[union-attr]
    return growth.Taken(float(seconds.replace(",", "")), float(gib))


def test_the_last_column_of_the_table_of_stages_is_computed_from_the_others() -> None:
    stages = _stages()
    grown = {
        str(size): growth.Grown({cells[0].split(",")[0]: _taken(cells[column]) for cells in stages}, {}, 1, 1)
        for column, size in enumerate(SIZES, 1)
    }
    far = growth.figures(grown, {str(size): size for size in SIZES})
    for cells in stages:
        stage = cells[0].split(",")[0]
        assert (stage in growth.SERIAL) == cells[6].startswith("no"), stage
        # seconds in the table are whole, hours have one digit
        further = (100 * SIZES[2] / (1 if stage in growth.SERIAL else growth.NODES) - SIZES[2]) / (SIZES[2] - SIZES[1])
        within = 0.06 + (0.5 + further) / 3_600
        assert float(cells[-1].removesuffix(" h")) == pytest.approx(far[f"100m.{stage}.hours"]["value"], abs=within)


@pytest.mark.parametrize("size", ["100,000", "1,000,000"])
def test_the_whole_of_the_table_of_stages_is_the_sum_of_its_parts(size: str) -> None:
    """Seconds of a catalogue's stages; of the last column the hours."""
    column, stages = _row("stage |").index(size), _stages()
    seconds = sum(_taken(cells[column]).seconds for cells in stages)
    told, unit = re.match(r"([\d.]+) (min|h)", _row("all |")[column]).groups()  # type: ignore[union-attr]
    assert float(told) == pytest.approx(seconds / {"min": 60, "h": 3_600}[unit], abs=0.06)
    hours = [float(cells[-1].removesuffix(" h")) for cells in stages]
    alone = [hour for hour, cells in zip(hours, stages, strict=True) if cells[6].startswith("no")]
    assert _row("all |")[-1] == f"{sum(hours):.0f} h, of it {sum(alone):.0f} on one machine"
