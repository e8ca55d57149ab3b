"""The Ray session: a local one for a laptop, or the cluster that RAY_ADDRESS (or a submitted job) names."""

import logging
import os
from typing import Any

import psutil
import ray
import ray.data
from ray._private.utils import estimate_available_memory
from ray.exceptions import ObjectStoreFullError, OutOfDiskError

from rec import allocator
from rec.errors import ConfigError

OBJECT_STORE_BYTES = 512 * 2**20
"""Shared memory of the Ray that a job starts by itself."""

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Ray Data would start 32 processes to look into the one file of an artifact.
os.environ.setdefault("RAY_DATA_PARQUET_FOOTER_NUM_ACTORS", "1")


def start(cpus: int) -> None:
    """Connect to Ray, or start it in this process with `cpus` logical CPUs. Does nothing when connected.

    Raises ConfigError when Ray does not start.
    """
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)  # a token is the default: no warning
    logging.getLogger("ray.data").setLevel(logging.WARNING)  # importing ray.data set it to tell each plan
    # Ray Data's own wrapper loses what it wraps on the way between processes, and with it a user's mistake.
    ray.data.DataContext.get_current().raise_original_map_exception = True
    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS")
    if address:
        remedy = (
            f"check that the cluster at RAY_ADDRESS={address} can be reached and runs Ray {ray.__version__}, and "
            "compare the token (RAY_AUTH_TOKEN, or the file RAY_AUTH_TOKEN_PATH, else ~/.ray/auth_token) with its own"
        )
        _init(remedy)
        return
    remedy = "free memory, processors and disk space under /tmp, or lower cpus, and run again"
    with allocator.keeping():
        _init(remedy, address="local", num_cpus=cpus, object_store_memory=OBJECT_STORE_BYTES, include_dashboard=False)


def require_gpus(option: str, count: int) -> None:
    """See that `option` can have `count` GPUs at once; Ray must have been started.

    Raises ConfigError where Ray runs on this machine alone and sees fewer. A cluster may bring nodes when they are
    asked for, and does not say which: there the log says what the work would wait for.
    """
    have = int(ray.cluster_resources().get("GPU", 0))
    if count <= have:
        return
    said = f"{option} asks for {count} GPU{'s' * (count > 1)}, and Ray sees {have}"
    if not os.environ.get("RAY_ADDRESS"):
        raise ConfigError(
            f"{said}: set {option}=false or lower the number of processes, or set RAY_ADDRESS to a cluster with GPUs"
        )
    logging.getLogger(__name__).warning("%s: this waits until the cluster has as many", said)


def require_cpus(processes: str, each: str, count: int) -> None:
    """See that `count` CPUs can be had at once, the product of the options named; Ray must have been started.

    Raises ConfigError where Ray runs on this machine alone and has fewer: it never grows, and would be waited for.
    """
    have = int(ray.cluster_resources().get("CPU", 0))
    if count > have and not os.environ.get("RAY_ADDRESS"):
        raise ConfigError(f"{processes} x {each} is {count}, but Ray was started with {have}: lower one, or raise cpus")


def full_store(error: BaseException) -> ConfigError | None:
    """What is said in the place of Ray's error where neither its object store nor its disk takes one more object."""
    kind = next((each for each in (ObjectStoreFullError, OutOfDiskError) if isinstance(error, each)), None)
    if kind is None:
        return None
    return ConfigError(
        f"Ray's object store is full and its disk takes no more of it ({kind.__name__}): free space on the disk "
        "of Ray's --temp-dir (/tmp by default) on every node, give Ray more --object-store-memory, or end what else "
        "runs on the cluster, and run again: finished work is kept"
    )


def available_memory() -> int:
    """Bytes that new work can take: of the machine, or of the container where that has a limit."""
    return min(psutil.virtual_memory().available, estimate_available_memory())


def _init(remedy: str, **options: Any) -> None:
    """`ray.init`, once more when it fails: a busy machine may be too slow for Ray's own start-up timeouts."""
    try:
        ray.init(**options, logging_level=logging.WARNING, log_to_driver=True)
    except Exception as first:  # Ray raises bare Exception for a node that timed out
        logging.getLogger(__name__).warning("Ray did not start (%s); trying once more", _line(first))
        ray.shutdown()  # what the failed start left would count as connected
        try:
            ray.init(**options, logging_level=logging.WARNING, log_to_driver=True)
        except Exception as error:
            ray.shutdown()
            raise ConfigError(f"Ray does not start ({_line(error)}): {remedy}") from error


def _line(error: Exception) -> str:
    """The error's message in one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__
