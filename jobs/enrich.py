#!/usr/bin/env python
"""Enrich products with attributes: given by the shop, found by rules, read by a language model.

Answers come from the cache in Postgres; what is missing is asked live, within enrich.max_calls.

    python jobs/enrich.py --recipe demo
    python jobs/enrich.py --recipe demo --dry-run                 # what it would ask and cost, without asking
    python jobs/enrich.py --recipe demo --export answers.jsonl    # the cached answers, for import elsewhere
"""

import argparse
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rec import artifact, runtime
from rec.cli import main, parser
from rec.config import Config
from rec.enrich import export, stage


def run(config: Config, options: argparse.Namespace) -> Mapping[str, Any]:
    """Enrich, estimate with --dry-run, or export with --export."""
    if options.dry_run:
        return stage.estimate(config)
    if options.export is None:
        with artifact.alone(config.root):
            return stage.run(config)
    runtime.start(config.cpus)
    return export.export(config, options.export, options.created_before)


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


if __name__ == "__main__":
    arguments = parser(__doc__ or "")
    arguments.add_argument("--dry-run", action="store_true", help="print what would be asked and paid, ask nothing")
    arguments.add_argument(
        "--export", type=Path, metavar="FILE", help="write the cached answers of the configured model as JSONL instead"
    )
    arguments.add_argument(
        "--created-before",
        type=_moment,
        metavar="TIME",
        help="with --export: only products created before this ISO 8601 time (UTC when it names no zone)",
    )
    main(run, arguments)
