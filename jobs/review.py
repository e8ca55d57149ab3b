#!/usr/bin/env python
"""Show a sample of enriched products with their values, sources and evidence; accept or edit them.

    python jobs/review.py --recipe demo --sample 50 --seed 0             # a page to read
    python jobs/review.py --recipe demo --serve 8100 --set enrich.corrections=corrections.jsonl

With --serve the page is at the printed address until Ctrl-C, and what is accepted or edited is added to the file
of enrich.corrections, whose values win over every other source from the next jobs/enrich.py on.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rec.cli import main, parser
from rec.config import Config
from rec.enrich import corrections, review, review_page, review_server
from rec.errors import ConfigError
from rec.vocab.std import StdVocabulary


def run(config: Config, options: argparse.Namespace) -> Mapping[str, Any]:
    """Write the page, or serve it with --serve."""
    vocabulary = StdVocabulary.load(None)
    if options.serve is not None:
        return _serve(config, options, vocabulary)
    human, _ = corrections.load(config.enrich.corrections, config.source.folder, vocabulary)
    sample = review.draw(config, options.sample, options.seed)
    target: Path = options.out or config.at("review.html")
    target.parent.mkdir(parents=True, exist_ok=True)
    html = review_page.page(config.name, sample, human.by_product, vocabulary, None)
    target.write_text(html, encoding="utf-8")
    return {"page": str(target), "products": len(sample.items), "status": sample.counts}


def _serve(config: Config, options: argparse.Namespace, vocabulary: StdVocabulary) -> Mapping[str, Any]:
    if not config.enrich.corrections:
        raise ConfigError(
            "enrich.corrections names no file to write to: name one in the recipe, "
            "or with --set enrich.corrections=corrections.jsonl"
        )
    path = corrections.locate(config.enrich.corrections, config.source.folder)
    listener = review_server.listen(options.serve)
    sample = review.draw(config, options.sample, options.seed)
    server = review_server.Review(config.name, sample, vocabulary, path)
    server.page()  # a file that cannot be read is said here
    host, port = listener.getsockname()
    print(f"http://{host}:{port}/?token={server.token}  (Ctrl-C ends it)", file=sys.stderr, flush=True)
    review_server.run(server, listener)
    return {"corrections": str(path), "products": len(sample.items)}


if __name__ == "__main__":
    arguments = parser(__doc__ or "")
    arguments.add_argument("--sample", type=int, default=50, metavar="N", help="products to show (default: 50)")
    arguments.add_argument("--seed", type=int, default=0, help="which ones are drawn (default: 0)")
    arguments.add_argument("--out", type=Path, metavar="FILE", help="where to write the page")
    arguments.add_argument(
        "--serve", type=int, metavar="PORT", help="serve the page on 127.0.0.1 and write what is accepted or edited"
    )
    main(run, arguments)
