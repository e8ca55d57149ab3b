#!/usr/bin/env python
"""Look for what would keep jobs and shop from working here, and say what to do about it.

Python, torch and GPU, Ray and its token, Postgres and pgvector, clocks, disk, memory, shared memory, models, ports, and
what other machines can reach. Exit code 1 when a check fails; warnings do not count.

    python jobs/doctor.py --recipe demo
    python jobs/doctor.py --recipe shop.toml --port 8010
"""

import argparse
import sys
from collections.abc import Mapping
from typing import Any

from rec import doctor
from rec.cli import main, parser
from rec.config import Config


def run(config: Config, options: argparse.Namespace) -> Mapping[str, Any]:
    """Make all checks; a table of them goes to stderr."""
    result = doctor.run(config, port=options.port)
    for finding in result["checks"]:
        print(f"  {finding['state']:4}  {finding['check']:15} {finding['found']}", file=sys.stderr)
        if finding["remedy"]:
            print(f"        {'':15} -> {finding['remedy']}", file=sys.stderr)
    return result


if __name__ == "__main__":
    arguments = parser(__doc__ or "")
    arguments.add_argument("--port", type=int, default=8000, help="port of the shop (default: 8000)")
    sys.exit(1 if main(run, arguments)["fail"] else 0)
