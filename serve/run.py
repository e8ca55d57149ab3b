"""`serve run` that ends gracefully at SIGTERM: replicas answer whom they have, and log the lists that they have shown.

    python -P -m serve.run run --address local serve.json

Serve's own takes its Ray down at once then.
"""

import ray
from ray import serve
from ray.serve.schema import ApplicationStatus
from ray.serve.scripts import cli


def drain() -> None:
    """Return when the applications that run have ended; those that start or are broken answer nobody."""
    if not ray.is_initialized():  # to be asked Serve would start a Ray
        return
    for name, application in serve.status().applications.items():
        if application.status == ApplicationStatus.RUNNING:
            serve.delete(name)


if __name__ == "__main__":
    try:
        cli()
    finally:  # Ray makes a SystemExit of a driver's SIGTERM
        drain()
