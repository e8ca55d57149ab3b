"""Item tower and user tower."""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from rec.config.branch import Branch
from rec.config.train import ItemTrain, UserTrain


class Behaviour(Branch):
    """Fine-tuning of the item tower on products that the same users chose; it still reads content only."""

    epochs: int = Field(default=0, ge=0)
    """Passes over as many drawn pairs as there are; 0: no such stage. `start = "choices"` reads pairs all the same."""
    batch_size: int = Field(default=256, ge=2)
    """Pairs per optimizer step over all workers."""
    learning_rate: float = Field(default=5e-4, gt=0)
    """AdamW step size."""
    window: int = Field(default=5, ge=1)
    """Two products are a pair when a user's events on them are at most so many events apart."""
    damping: float = Field(default=0.25, ge=0, le=1)
    """How much less often pairs of popular products are drawn: their counts are divided by (n_i n_j)^damping, n_i the
    pairs of a product. 0: as often as users chose them, 1: in proportion to their lift."""
    log_q: float = Field(default=1.0, ge=0, le=1)
    """How much of the LogQ correction is made. 1: scores learn how probable a partner is, its popularity included; 0:
    how much more probable than by its popularity, which does not put products that nobody chose behind all others."""
    temperature: float = Field(default=0.07, gt=0)
    """Softmax temperature of the loss."""


class ItemTower(Branch):
    """Item tower shape and SimCSE views."""

    aside = frozenset({"compile"})
    late = frozenset({"text", "chunk_size", "same_category", "shared_keys", "start", "std_width", "std_share"})

    inputs: list[Literal["std", "re", "title"]] = Field(default=["std", "re", "title"], min_length=1)
    """Inputs in use; leaving one out is the ablation."""
    shared_keys: bool = True
    """RE tokens and STD values of one key share its embedding; without, RE keys have their own: the ablation."""
    start: Literal["texts", "choices"] = "texts"
    """Directions of the catalogue's texts that the tower starts in: those in which products differ most, or those in
    which products that the same users chose are alike (`behaviour.window`, `behaviour.damping`). It reads content only
    either way."""
    width: int = Field(default=128, ge=8)
    """d, width of item and user vectors."""
    std_width: int = Field(default=0, ge=0)
    """Of the numbers of a vector, those that say standard attributes alone, for which SimCSE has a loss of their own;
    0: none. Worth it where attributes tell what is chosen together: `full.minus.mixed` of `jobs/benchmark.py
    item-tower`."""
    std_share: float = Field(default=0.3, gt=0, lt=1)
    """Of the likeness of two products, what the `std_width` numbers say. Products without STD are alike in these."""
    heads: int = Field(default=4, ge=1)
    """Attention heads; divides `width`."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout inside the network."""
    feature_dropout: float = Field(default=0.3, ge=0, lt=1)
    """Probability that a key's STD or RE values are hidden in a view."""
    token_dropout: float = Field(default=0.2, ge=0, lt=1)
    """Probability that a title token is hidden in a view."""
    temperature: float = Field(default=0.07, gt=0)
    """Softmax temperature of the contrastive loss."""
    chunk_size: int | None = Field(default=None, ge=1)
    """Products of one worker that go through the network at once, so that a batch may be larger than memory; None:
    the worker's whole share of the batch, which takes a third less time. What compares all views with each other takes
    some 13 bytes x (2 x batch_size)² all the same, and twice that with `std_width`."""
    same_category: float = Field(default=0.0, ge=0, le=1)
    """Share of a batch that stands in runs of one category, whose other styles are the harder negatives."""
    text: Literal["frozen", "top", "full"] = "frozen"
    """What of `text.encoder` is trained with the tower: nothing, its last `text_layers` layers, or all of it."""
    text_layers: int = Field(default=2, ge=1)
    """Last layers that are trained (`top`)."""
    text_learning_rate: float = Field(default=2e-5, gt=0)
    """AdamW step size of the encoder's layers (`top`, `full`); train.learning_rate is that of all else."""
    compile: bool = False
    """Train through torch.compile: worth its start on a GPU; on a CPU it needs a C++ compiler."""
    train: ItemTrain = ItemTrain()
    """Its Ray Train run."""
    behaviour: Behaviour = Behaviour()

    def identity(self) -> dict[str, Any]:
        """See `Branch`. Options of a mode or stage that is not in use change nothing."""
        unused = {"frozen": {"text_layers", "text_learning_rate"}, "top": set(), "full": {"text_layers"}}[self.text]
        unused |= set() if self.reads_choices else {"behaviour"}
        unused |= set() if self.std_width else {"std_share"}
        return {name: value for name, value in super().identity().items() if name not in unused}

    def complete(self, identity: Mapping[str, Any]) -> dict[str, Any]:
        """See `Branch`. An identity without the behaviour stage is one of a tower that had none."""
        values = super().complete({"behaviour": {"epochs": 0}, **identity})
        unsaid = set() if values["std_width"] else {"std_share"}
        return {name: value for name, value in values.items() if name not in unsaid}

    @model_validator(mode="after")
    def _std_part_fits(self) -> Self:
        if self.std_width and "std" not in self.inputs:
            raise ValueError(
                f'std_width={self.std_width} numbers would say nothing: inputs={self.inputs} lacks "std"; set '
                "item_tower.std_width=0"
            )
        if self.std_width >= self.width:
            raise ValueError(
                f"std_width={self.std_width} leaves no number of width={self.width} to all inputs together: lower "
                "item_tower.std_width"
            )
        return self

    @property
    def reads_choices(self) -> bool:
        """Whether pairs of products that the same users chose are drawn, for the start or for a stage of their own."""
        return self.start == "choices" or self.behaviour.epochs > 0

    @property
    def layers_above_states(self) -> int:
        """Last layers of the text encoder that the text states have not gone through."""
        return self.text_layers if self.text == "top" else 0


class UserTower(Branch):
    """User tower shape and loss."""

    inputs: list[Literal["behaviour", "context", "profile"]] = Field(
        default=["behaviour", "context", "profile"], min_length=1
    )
    """Inputs in use; leaving one out is the ablation."""
    history: int = Field(default=20, ge=1)
    """Last n events read."""
    layers: int = Field(default=2, ge=1)
    """Transformer blocks over the history."""
    heads: int = Field(default=4, ge=1)
    """Attention heads; divides `item_tower.width`."""
    convolution: int = Field(default=0, ge=0)
    """Last positions that a causal convolution beside each attention reads; 0: none."""
    dropout: float = Field(default=0.2, ge=0, lt=1)
    """Dropout inside the network."""
    input_dropout: float = Field(default=0.15, ge=0, lt=1)
    """Probability that a whole input is hidden in training, so that any subset works."""
    exclude_seen: bool = True
    """Items of the user's own history are no candidates."""
    content: bool = True
    """Items are the item tower's vectors. False: vectors that start at random, without a bound on what is learned of
    each: SASRec with this tower's softmax, the control, under which no item without training events is found."""
    adapter: int = Field(default=0, ge=0)
    """Hidden width of a small network that moves the item tower's vectors, those of cold items as well, to where users
    want them; 0: none, and the vectors stay as they are."""
    semantics: int = Field(default=0, ge=0)
    """Components of a latent semantic analysis of the products' STD, RE and title tokens that the adapter reads beside
    the item tower's vector: the words themselves, which text encoders blur. 0: none; needs an adapter."""
    adapter_dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout inside the adapter."""
    delta_norm: float = Field(default=0.5, ge=0)
    """Bound on the learned per-item delta; 0 turns it off."""
    temperature: float = Field(default=0.07, gt=0)
    """Softmax temperature of the loss."""
    num_negatives: int = Field(default=2048, ge=1)
    """Sampled negatives per step, beside the batch's own targets; catalogues not larger use all items."""
    cold_weight: float = Field(default=0.02, ge=0, le=1)
    """How much an item without training events counts as a negative; 0: not at all, 1: as any other item."""
    patience: int = Field(default=5, ge=0)
    """Epochs without a better NDCG@10 at second last events after which training stops; 0: never. The best is kept."""
    train: UserTrain = UserTrain()
    """Its Ray Train run."""
