"""Errors a user can act on.

    RecError                 every message names the thing, the value and the remedy
    ├── ConfigError          recipe, option or environment
    ├── InputError           a file or a column the user gave
    ├── ArtifactError        a stage's output is missing, damaged or of another version
    ├── DriftError           products have drifted from the vocabulary further than the recipe allows
    ├── TrainingError        a training cannot go on: no numbers, room or memory, or dead workers
    ├── DatabaseError        Postgres or pgvector
    └── EngineError          the LLM that answers enrichment prompts
        └── EndpointError    it answers no prompt at all

Jobs print the message and exit with code 2 (`rec.cli`); nothing else catches `RecError` broadly.
"""


class RecError(Exception):
    """Base of all errors caused by input, configuration or environment."""


class ConfigError(RecError):
    """A recipe, an override or an environment variable is wrong."""


class InputError(RecError):
    """A file or column given by the user cannot be read as what it should be."""


class ArtifactError(RecError):
    """A stage's output is missing, damaged, or written by another version."""


class DriftError(RecError):
    """Products have drifted from the vocabulary further than the recipe allows."""


class TrainingError(RecError):
    """A training cannot go on; what its last checkpoint holds is good."""


class DatabaseError(RecError):
    """Postgres cannot be reached, lacks pgvector, or refuses an operation."""


class EngineError(RecError):
    """The LLM engine is not installed or cannot load its model."""


class EndpointError(EngineError):
    """The LLM's endpoint refuses this client, or is down: asking for other products is of no use."""
