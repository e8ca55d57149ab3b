"""What the README tells a reader to do exists as written."""

import re
import shlex
import subprocess
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest

from rec import config

REPOSITORY = Path(__file__).resolve().parents[2]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def _commands() -> list[str]:
    lines = [line for language, text in BLOCKS if language == "sh" for line in text.replace("\\\n", " ").splitlines()]
    return [line.split("  #")[0].strip() for line in lines if line.strip() and not line.startswith("#")]


def test_readme_has_commands() -> None:
    assert {"make demo", "make test", "make stop"} <= set(_commands())


@pytest.mark.parametrize("command", sorted({c for c in _commands() if c.startswith("make ")}))
def test_make_targets_exist(command: str) -> None:
    done = subprocess.run(
        ["make", "-n", *shlex.split(command)[1:]], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("command", sorted({c for c in _commands() if "jobs/" in c}))
def test_job_commands_are_valid(command: str, helps: Mapping[str, tuple[object, str]]) -> None:
    words = shlex.split(command)
    start = next(i for i, word in enumerate(words) if word.startswith("jobs/"))
    job, *options = words[start:]
    assert job in helps, f"there is no {job}"
    for option in options:
        assert not option.startswith("--") or option in helps[job][1], f"{job} has no {option}"
    recipe = options[options.index("--recipe") + 1] if "--recipe" in options else "demo"
    if not recipe.endswith(".toml"):
        config.load(recipe, [options[i + 1] for i, option in enumerate(options) if option == "--set"])


@pytest.mark.slow
def test_shown_request_is_a_valid_body() -> None:
    from serve.api import RecommendBody

    shown = [shlex.split(c) for c in _commands() if c.startswith("curl") and "-d" in c]
    assert shown, "the README shows no request"
    for words in shown:
        RecommendBody.model_validate_json(words[words.index("-d") + 1])


def test_every_shown_recipe_is_valid(tmp_path: Path) -> None:
    shown = [text for language, text in BLOCKS if language == "toml"]
    assert shown, "the README shows no recipe"
    for text in shown:
        tomllib.loads(text)
        path = tmp_path / "shown.toml"
        path.write_text(text, encoding="utf-8")
        config.load(str(path))


def test_links_inside_the_repository_exist() -> None:
    targets = re.findall(r"\]\((?!https?://|#)([^)#]+)", README)
    missing = [target for target in targets if not (REPOSITORY / target).exists()]
    assert missing == []
