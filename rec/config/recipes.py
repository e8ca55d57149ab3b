"""Recipes: shipped ones and TOML files, with overrides of the command line."""

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from rec.config.tree import Config
from rec.errors import ConfigError


def recipes() -> list[str]:
    """Names of the shipped recipes."""
    folder = resources.files("rec") / "recipes"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load(recipe: str, overrides: Sequence[str] = ()) -> Config:
    """The recipe `recipe` (a shipped name or the path of a TOML file) with `key.sub=value` overrides.

    Values are TOML; a bare word is taken as a string. Raises ConfigError naming the nearest known key.
    """
    tree = _read(recipe)
    for override in overrides:
        _apply(tree, override)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise ConfigError(f"unknown option {where!r}{_nearest(where)}") from None
        if not where:  # a rule between options names them itself
            raise ConfigError(f"recipe {recipe!r}: {first['msg'].removeprefix('Value error, ')}") from None
        raise ConfigError(f"option {where!r}: {first['msg']} (got {first['input']!r})") from None


def _read(recipe: str) -> dict[str, Any]:
    if recipe.endswith(".toml"):
        path = Path(recipe)
        if not path.is_file():
            raise ConfigError(f"recipe file {recipe!r} does not exist")
        content = path.read_bytes()
    elif recipe in recipes():
        content = (resources.files("rec") / "recipes" / f"{recipe}.toml").read_bytes()
    else:
        near = difflib.get_close_matches(recipe, recipes(), 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(
            f"unknown recipe {recipe!r}{hint} (shipped: {', '.join(recipes())}; or a path ending in .toml)"
        )
    try:
        return tomllib.loads(content.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"recipe {recipe!r} is not TOML: {error}") from error


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r} must read key.sub=value")
    try:
        value = tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        value = text
    *parents, leaf = key.split(".")
    branch = tree
    for parent in parents:
        branch = branch.setdefault(parent, {})
        if not isinstance(branch, dict):
            raise ConfigError(f"unknown option {key!r}: {parent!r} has no options of its own")
    branch[leaf] = value


def _nearest(where: str) -> str:
    near = difflib.get_close_matches(where, list(_keys(Config)), 1, cutoff=0.0)
    return f"; did you mean {near[0]!r}?" if near else ""


def _keys(branch: type[BaseModel], prefix: str = "") -> Mapping[str, None]:
    keys: dict[str, None] = {}
    for name, field in branch.model_fields.items():
        keys[prefix + name] = None
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys.update(_keys(field.annotation, f"{prefix}{name}."))
    return keys
