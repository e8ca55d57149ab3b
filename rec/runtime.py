"""The Ray session: a local one for a laptop, or the cluster that RAY_ADDRESS (or a submitted job) names."""

import logging
import os

import ray
import ray.data

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


def start(cpus: int) -> None:
    """Connect to Ray, or start it in this process with `cpus` logical CPUs. Does nothing when connected."""
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)  # a token is the default: no warning
    logging.getLogger("ray.data").setLevel(logging.WARNING)  # importing ray.data set it to tell each plan
    if ray.is_initialized():
        return
    if os.environ.get("RAY_ADDRESS"):
        ray.init(logging_level=logging.WARNING, log_to_driver=True)
        return
    ray.init(
        address="local",
        num_cpus=cpus,
        object_store_memory=512 * 2**20,
        include_dashboard=False,
        logging_level=logging.WARNING,
        log_to_driver=True,
    )
