"""Recipes: shipped ones and TOML files, with overrides of the command line."""

import difflib
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

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


def explained(branch: str) -> Iterator[tuple[str, str | None, str]]:
    """(name, default as --set takes it or None where there is none, meaning) of each option under a branch."""
    model: type[BaseModel] = Config
    for part in branch.split("."):
        found = _model(model.model_fields[part])
        assert found is not None, f"{branch} is an option"
        model = found
    for name, field in model.model_fields.items():
        default = field.get_default()
        if _model(field) is not None:
            yield from explained(f"{branch}.{name}")
        else:
            said = default if isinstance(default, str | None) else json.dumps(default)
            choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
            one_of = f" One of: {', '.join(choices)}." if choices else ""
            yield f"{branch}.{name}", said, " ".join((field.description or "").split()) + one_of


def _model(field: FieldInfo) -> type[BaseModel] | None:
    """The branch that a field is, if it is one."""
    found = field.annotation
    return found if isinstance(found, type) and issubclass(found, BaseModel) else None


def _keys(branch: type[BaseModel], prefix: str = "") -> Mapping[str, None]:
    keys: dict[str, None] = {}
    for name, field in branch.model_fields.items():
        keys[prefix + name] = None
        part = _model(field)
        if part is not None:
            keys.update(_keys(part, f"{prefix}{name}."))
    return keys
