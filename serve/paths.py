"""Ids in paths are any text, as they are in bodies: slashes and line breaks, too.

Starlette's own `path` stops at a line break, so what was stored under such an id could not be deleted.
"""

from starlette.convertors import Convertor, register_url_convertor

TEXT = "text"
"""What a route calls it: `/v1/users/{user_id:text}`."""


class Text(Convertor[str]):
    """Any characters."""

    regex = r"[\s\S]*"

    def convert(self, value: str) -> str:
        """As it is."""
        return value

    def to_string(self, value: str) -> str:
        """As it is."""
        return value


def install() -> None:
    """Let routes that are declared from now on use it."""
    register_url_convertor(TEXT, Text())
