#!/usr/bin/env python
"""Rules for lists of recommendations: look at them, try them, put them in force. A running shop follows within seconds.

    python jobs/rules.py check rules.toml --recipe demo      # are the file and all names in it right?
    python jobs/rules.py preview rules.toml --recipe demo    # lists before and after, nothing changes
    python jobs/rules.py apply rules.toml --recipe demo      # all of the file takes the place of all rules in force
    python jobs/rules.py show --recipe demo                  # what is in force; --out writes it to a file
    python jobs/rules.py revert --recipe demo                # the version before is in force again
    python jobs/rules.py clear --recipe demo                 # no rules; revert brings them back

What a file may hold, and which rule is the stronger: rec/recommend/rules.py. A preview shows stored shoppers just
before their last event and says how often lists hold the product of that event (NDCG), under the rules in force and
under the file's; lists go to stderr, totals to the result line.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rec import bundles, postgres
from rec.bundle import Bundle
from rec.cli import main, parser
from rec.config import Config
from rec.errors import ConfigError, DatabaseError, InputError
from rec.index import rule_versions
from rec.index.catalogue import Catalogue
from rec.index.connections import Connections
from rec.recommend import preview, rules
from rec.recommend.chain import Chain
from rec.recommend.facets import Facets
from rec.recommend.preview import Shopper
from rec.recommend.request import MAX_K, Choice, Request
from rec.recommend.resolve import STORED_EVENTS
from rec.recommend.ruling import Ruling
from rec.recommend.shelf import Shelf

ACTIONS = ("check", "preview", "apply", "show", "revert", "clear")
WITH_FILE = ("check", "preview", "apply")
ADVISED = 5
"""Unknown names that an error spells out."""


@dataclass(frozen=True)
class Desk:
    """Where the recipe's rules are, and the bundle that they are checked against."""

    url: str
    bundle: Bundle

    @classmethod
    def of(cls, config: Config) -> "Desk":
        """The desk of a recipe whose bundle is active."""
        url = postgres.url(config.store, create=False)
        active = bundles.active_bundle(config)
        if active.recipe != config.name:
            raise DatabaseError(
                f"the active bundle {active.id} is of recipe {active.recipe!r}, not {config.name!r}: "
                f"name it with --recipe {active.recipe}, or publish one of {config.name!r}"
            )
        return cls(url, active)

    def compiled(self, source: str, origin: str) -> Ruling:
        """The rules of TOML text for the bundle; what it lacks is listed in them."""
        found = rules.parse(source, origin)
        return Ruling(found, Facets(self.bundle), Shelf(self.bundle), self.bundle.item_vectors())

    @contextmanager
    def chain(self) -> Iterator[tuple[Chain, Catalogue]]:
        """The recommender of the bundle in this process, and its catalogue."""
        connections = Connections(self.url, size=2)
        try:
            yield Chain(self.bundle, connections), Catalogue(connections, self.bundle.recipe)
        finally:
            connections.close()


def read(path: Path) -> str:
    """The text of a file of rules."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"rules {path} cannot be read: {error}") from None


def checked(desk: Desk, path: Path) -> tuple[str, Ruling]:
    """Source and rules of a file. Raises InputError for names that no product has."""
    source = read(path)
    found = desk.compiled(source, str(path))
    if found.unknown:
        told = [found.advice(unknown) for unknown in found.unknown[:ADVISED]]
        more = len(found.unknown) - len(told)
        raise InputError(f"rules {path}: {'; and '.join(told)}" + (f"; and {more} more" if more else ""))
    return source, found


def check(desk: Desk, path: Path) -> dict[str, Any]:
    """How many products each rule selects. Raises InputError for what is wrong."""
    _, found = checked(desk, path)
    return {"file": str(path), "bundle": desk.bundle.id, "products": found.selected()}


def apply(desk: Desk, path: Path) -> dict[str, Any]:
    """Put a file in force."""
    source, _ = checked(desk, path)
    made = rule_versions.apply(desk.url, desk.bundle.recipe, source)
    return {"version": made.number, "applied_at": made.applied_at.isoformat()}


def clear(desk: Desk) -> dict[str, Any]:
    """Take all rules away."""
    return {"version": rule_versions.apply(desk.url, desk.bundle.recipe, "").number}


def revert(desk: Desk) -> dict[str, Any]:
    """Put the version before in force."""
    found = rule_versions.revert(desk.url, desk.bundle.recipe)
    return {"version": None if found is None else found.number}


def show(desk: Desk, out: Path | None) -> dict[str, Any]:
    """The rules in force, the versions before, and what the bundle lacks of them."""
    versions = rule_versions.standing(desk.url, desk.bundle.recipe, 100)
    source = versions[0].source if versions else ""
    if out is not None:
        staging = out.with_name(f".{out.name}.tmp")
        staging.write_text(source, encoding="utf-8")
        os.replace(staging, out)
    return {
        "version": versions[0].number if source else None,
        "applied_at": versions[0].applied_at.isoformat() if source else None,
        "earlier": [version.number for version in versions[1:]],
        "inactive": [str(unknown) for unknown in desk.compiled(source, "in force").unknown],
        "rules": source,
    }


def shown(desk: Desk, path: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Print lists before and after; return their totals."""
    _, after = checked(desk, path)
    k: int = options.k
    with desk.chain() as (chain, catalogue):
        if options.history:
            told = tuple(Choice(product_id) for product_id in options.history)
            shoppers = [Shopper(" ".join(options.history), Request(history=told, k=k))]
        else:
            users = options.user or catalogue.sample(options.users)
            shoppers = [preview.held_out(chain, user, catalogue.known(user, STORED_EVENTS), k) for user in users]
        pairs = preview.compare(chain, chain.rules.ruling, after, shoppers, datetime.now(UTC))
        for pair in pairs:
            print(preview.text(pair), end="\n\n", file=sys.stderr)
        return preview.totals(chain, pairs, k)


def run(config: Config, options: argparse.Namespace) -> Mapping[str, Any]:
    """Do what the first argument says."""
    path: Path | None = options.file
    if (path is not None) != (options.action in WITH_FILE):
        raise ConfigError(
            f"{options.action} {'needs a file of rules' if path is None else 'takes no file'}: "
            f"python jobs/rules.py {options.action}{' rules.toml' if path is None else ''}"
        )
    desk = Desk.of(config)
    if path is not None:
        if options.action == "preview":
            return shown(desk, path, options)
        return check(desk, path) if options.action == "check" else apply(desk, path)
    if options.action == "show":
        return show(desk, options.out)
    return revert(desk) if options.action == "revert" else clear(desk)


def _between(low: int, high: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text} must lie between {low} and {high}")
        return int(text)

    return number


def arguments() -> argparse.ArgumentParser:
    """The job's options."""
    made = parser(__doc__ or "")
    made.add_argument("action", choices=ACTIONS)
    made.add_argument("file", nargs="?", type=Path, metavar="FILE", help="TOML file of rules")
    made.add_argument(
        "--users",
        type=_between(1, 10_000),
        default=20,
        metavar="N",
        help="preview: stored shoppers (default: 20)",
    )
    made.add_argument("--user", action="append", metavar="ID", help="preview: this shopper; may be repeated")
    made.add_argument(
        "--history", action="append", metavar="PRODUCT", help="preview: one who chose this product; may be repeated"
    )
    made.add_argument("--k", type=_between(1, MAX_K), default=10, help="preview: length of a list (default: 10)")
    made.add_argument("--out", type=Path, metavar="FILE", help="show: where to write the rules")
    return made


if __name__ == "__main__":
    main(run, arguments())
