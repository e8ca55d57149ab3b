"""Candidates, reranker and fit head."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from rec.config.branch import Branch
from rec.config.train import FitTrain, RankerTrain


class Quotas(Branch):
    """Shares of a request's candidates that other sources may claim before the search by the user vector fills the
    rest; a source with 0 is not asked at all."""

    item: float = Field(default=0.1, ge=0, le=1)
    """Items near the last ones of the history."""
    cooccurrence: float = Field(default=0.1, ge=0, le=1)
    """Items that other users had together with these."""

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.item + self.cooccurrence > 1:
            raise ValueError(f"ranker.quotas.item={self.item} and .cooccurrence={self.cooccurrence} are more than 1")
        return self


class Ranker(Branch):
    """DeepFM or DLRM, and its candidates."""

    model: Literal["deepfm", "dlrm"] = "deepfm"
    """Factorisation machine beside a network, or dot products of all fields within one."""
    candidates: int = Field(default=100, ge=10)
    """Candidates retrieved per request, in training and serving."""
    quotas: Quotas = Quotas()
    """Which of them come from where."""
    embedding_dim: int = Field(default=16, ge=4)
    """Width of a field's embedding."""
    hidden: list[Annotated[int, Field(ge=1)]] = Field(default=[128, 64], min_length=1)
    """Widths of the layers of DeepFM's deep part, of DLRM's top network."""
    bottom: list[Annotated[int, Field(ge=1)]] = [64]
    """DLRM: widths of the layers between the dense fields and their vector."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout after the layers of `hidden`."""
    transfer: Literal["copy", "project", "none"] = "project"
    """How STD and RE tables start: as the item tower's are (`embedding_dim` must be its width), projected from them,
    or at random."""
    freeze_steps: int = Field(default=0, ge=0)
    """Optimizer steps, counted over all epochs, before which the transferred tables are not changed."""
    pointwise: float = Field(default=0.0, ge=0, le=1)
    """Weight of the pointwise logloss; the softmax over a request's candidates has the rest."""
    negatives: int = Field(default=0, ge=0)
    """Candidates beside the target that a request trains on, drawn anew each epoch with LogQ; 0: all."""
    re_tokens: int = Field(default=16, ge=1)
    """RE tokens per item that the ranker reads; the tower reads vocab.max_re_tokens."""
    holdout: float = Field(default=0.1, gt=0, lt=1)
    """Share of users that choose the best epoch and train nothing."""
    max_users: int | None = Field(default=None, ge=1)
    """Cap on users whose held-out event trains the ranker."""
    patience: int = Field(default=0, ge=0)
    """Epochs without a better NDCG@10 of held-out users after which training stops; 0: never. The best is kept."""
    train: RankerTrain = RankerTrain()
    """Its Ray Train run."""


class Fit(Branch):
    """The fit head: how a garment in a size would fit. It needs events with sizes and feedback."""

    aside = frozenset({"enabled"})

    enabled: bool = False
    """Train it and answer `fit` with each recommended product."""
    width: int = Field(default=8, ge=1)
    """Numbers of an item's and a shopper's latent vector."""
    history: int = Field(default=10, ge=0)
    """Last n events with a size that are read of a shopper."""
    item_bound: float = Field(default=2.0, ge=0)
    """Bound on what is learned of a single product; 0 turns it off. A product without feedback has content alone."""
    prior: float = Field(default=0.5, gt=0)
    """Standard deviation that single products and sizes are thought to have before any feedback; smaller: few events
    say less."""
    profile_dropout: float = Field(default=0.1, ge=0, lt=1)
    """Probability that a profile is hidden in training."""
    patience: int = Field(default=4, ge=0)
    """Epochs without a better log-loss at second last events after which training stops; 0: never. The best is kept."""
    train: FitTrain = FitTrain()
    """Its Ray Train run."""
