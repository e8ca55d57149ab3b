"""A part of the tree of options, and what of it is identity."""

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict


class Branch(BaseModel):
    """A frozen part of the tree; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True)
    aside: ClassVar[frozenset[str]] = frozenset()
    """Options that change nothing of what is made: with what resources, and what is thought of it."""
    late: ClassVar[frozenset[str]] = frozenset()
    """Options younger than artifacts that stay good: an identity leaves them out while they have their default."""

    def identity(self) -> dict[str, Any]:
        """All other options as JSON values, for a fingerprint."""
        unsaid = {name for name in self.late if getattr(self, name) == type(self).model_fields[name].default}
        values = self.model_dump(mode="json", exclude=set(self.aside) | unsaid)
        parts = {name: getattr(self, name) for name in values}
        return values | {name: part.identity() for name, part in parts.items() if isinstance(part, Branch)}

    def complete(self, identity: Mapping[str, Any]) -> dict[str, Any]:
        """A stored identity of this branch together with the defaults that it leaves out."""
        values = {name: type(self).model_fields[name].default for name in self.late} | dict(identity)
        parts = {name: getattr(self, name, None) for name, value in values.items() if isinstance(value, Mapping)}
        return values | {n: part.complete(values[n]) for n, part in parts.items() if isinstance(part, Branch)}
