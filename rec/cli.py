"""The command line that all jobs share: `--recipe`, dotted overrides, clear errors, one result line."""

import argparse
import json
import sys
import textwrap
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

from rec import artifact, log
from rec.config import Config, explained, load, recipes
from rec.errors import RecError

Run = Callable[[Config, argparse.Namespace], Mapping[str, Any]]


def parser(description: str, branch: str | None = None) -> argparse.ArgumentParser:
    """An argument parser with the options every job has; its help tells those of the `branch` for --set, too."""
    made = argparse.ArgumentParser(
        description=description,
        epilog=_options(branch) + f"shipped recipes: {', '.join(recipes())}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "--recipe", default="demo", metavar="NAME", help="a shipped recipe or a path ending in .toml (default: demo)"
    )
    made.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="KEY=VALUE",
        help="override one option, e.g. --set item_tower.train.epochs=3; may be repeated",
    )
    return made


def _options(branch: str | None) -> str:
    """The options of a branch with their defaults and meanings."""
    if branch is None:
        return ""
    said = ["options for --set, with their defaults; a recipe may set others:\n"]
    for name, default, meaning in explained(branch):
        said.append(f"  {name}{' (not set)' if default is None else f'={default}'}\n")
        said += [f"      {line}\n" for line in textwrap.wrap(meaning, 90)]
    return "".join(said) + "\n"


def main(run: Run, arguments: argparse.ArgumentParser, *, writes: bool = False) -> Mapping[str, Any]:
    """Parse, run, print one JSON line on stdout, return it. Exit code 2 and one sentence for what a user can mend.

    `writes`: the job writes artifacts of the recipe, and does not start while another one does.
    """
    options = arguments.parse_args()
    log.setup()
    try:
        config = load(options.recipe, options.overrides)
        with artifact.alone(config.root) if writes else nullcontext():
            result = run(config, options)
    except Exception as error:
        mistake = _mistake(error)
        if mistake is None:
            raise
        sentence = str(mistake).partition("\n")[0]  # Ray Data adds lines of advice to what a worker raised
        print(f"error: {sentence}", file=sys.stderr)
        sys.exit(2)
    print(json.dumps(dict(result), ensure_ascii=False, default=str))
    return result


def _mistake(error: BaseException) -> RecError | None:
    """The RecError that `error` is or comes from, nearest first; one in the place of Ray's for a full object store.

    Ray hands on what a worker raised as an error of the same class whose message is a traceback; `cause` has the
    error itself. Of an actor that could not be made, only the arguments of its death have it.
    """
    waiting: list[BaseException] = [error]
    seen: set[int] = set()
    while waiting:
        found = waiting.pop(0)
        seen.add(id(found))
        within = getattr(found, "cause", None)
        if isinstance(found, RecError) and not isinstance(within, BaseException):
            return found
        if (full := _full_store(found)) is not None:
            return full
        behind = (within, found.__cause__, *found.args, found.__context__)
        waiting += [one for one in behind if isinstance(one, BaseException) and id(one) not in seen]
    return None


def _full_store(error: BaseException) -> RecError | None:
    """`rec.runtime.full_store`, without importing Ray where no work has: that takes a second."""
    if "ray" not in sys.modules:
        return None
    from rec import runtime

    return runtime.full_store(error)
