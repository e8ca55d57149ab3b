"""Ray Train runs."""

from typing import Literal

from pydantic import Field

from rec.config.branch import Branch


class Train(Branch):
    """A Ray Train run."""

    aside = frozenset({"cpus_per_worker", "use_gpu", "max_failures", "wait_minutes", "checkpoint_minutes"})
    late = frozenset({"precision"})

    num_workers: int = Field(default=1, ge=1)
    """Processes of the data-parallel group."""
    cpus_per_worker: int = Field(default=2, ge=1)
    """CPUs and torch threads of one worker."""
    use_gpu: bool = False
    """One GPU per worker, and NCCL instead of Gloo."""
    epochs: int = Field(default=10, ge=1)
    """Passes over the training rows."""
    batch_size: int = Field(default=256, ge=2)
    """Rows per optimizer step over all workers."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """AdamW step size."""
    weight_decay: float = Field(default=0.01, ge=0)
    """AdamW decoupled decay."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """What the forward pass computes in, as far as torch.autocast lets it; loss, weights and checkpoints are float32.
    The two towers do."""
    max_failures: int = Field(default=2, ge=0)
    """Restarts of a failed worker group from the last checkpoint; as many more for nodes that were drained."""
    checkpoint_minutes: float = Field(default=10, ge=0)
    """A checkpoint is written after each epoch, and within one, after every twentieth step, where so many minutes have
    passed since the last; 0: after each twentieth step."""
    wait_minutes: float = Field(default=15, gt=0)
    """How long a cluster may take to have room for the workers, at the start and after a loss."""


class ItemTrain(Train):
    """The item tower's Ray Train run."""

    epochs: int = Field(default=20, ge=1)
    """Passes over the training rows."""
    learning_rate: float = Field(default=3e-4, gt=0)
    """AdamW step size; larger steps leave the start from texts behind."""


class UserTrain(Train):
    """The user tower's Ray Train run."""

    epochs: int = Field(default=20, ge=1)
    """Passes over the training windows."""


class RankerTrain(Train):
    """The ranker's Ray Train run."""

    epochs: int = Field(default=5, ge=1)
    """Passes over the training requests."""
    batch_size: int = Field(default=4096, ge=2)
    """Candidates per optimizer step over all workers."""


class FitTrain(Train):
    """The fit head's Ray Train run."""

    epochs: int = Field(default=12, ge=1)
    """Passes over the training events."""
    batch_size: int = Field(default=1024, ge=2)
    """Events per optimizer step over all workers."""
    learning_rate: float = Field(default=5e-3, gt=0)
    """AdamW step size."""
