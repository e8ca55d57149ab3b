"""The whole tree, and the rules between its branches."""

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from rec.config.branch import Branch
from rec.config.enrich import EMBEDDED_MODELS, Enrich
from rec.config.operate import Evaluate, Feedback, Index
from rec.config.ranker import Fit, Ranker
from rec.config.source import Source
from rec.config.text import Text, Vocab
from rec.config.towers import ItemTower, UserTower


class Config(Branch):
    """The whole tree."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_-]{0,30}$")
    """Recipe name; folder of its artifacts in the store."""
    store: str = ".rec"
    """Folder of all artifacts, the bundles and the embedded Postgres."""
    seed: int = 17
    """Seed of everything random."""
    cpus: int = Field(default=4, ge=2)
    """Logical CPUs of the Ray that a job starts by itself; a cluster has its own."""
    source: Source = Source()
    enrich: Enrich = Enrich()
    text: Text = Text()
    vocab: Vocab = Vocab()
    item_tower: ItemTower = ItemTower()
    user_tower: UserTower = UserTower()
    ranker: Ranker = Ranker()
    fit: Fit = Fit()
    index: Index = Index()
    feedback: Feedback = Feedback()
    evaluate: Evaluate = Evaluate()

    @model_validator(mode="after")
    def _embedded_model_is_known(self) -> Self:
        if self.enrich.engine == "llamacpp" and self.enrich.model not in EMBEDDED_MODELS:
            known = ", ".join(EMBEDDED_MODELS)
            raise ValueError(
                f"enrich.model={self.enrich.model!r} is not carried by a package ({known}): "
                'name one of these, or set enrich.engine="openai"'
            )
        return self

    @model_validator(mode="after")
    def _vllm_has_a_model_and_room(self) -> Self:
        most, context = self.enrich.max_output_tokens, self.enrich.vllm.max_model_len
        if self.enrich.engine == "vllm" and self.enrich.model in EMBEDDED_MODELS:
            raise ValueError(
                f'enrich.model={self.enrich.model!r} is a file of llama.cpp, and enrich.engine="vllm" needs a Hugging '
                "Face id or a folder: set enrich.model"
            )
        if self.enrich.engine == "vllm" and most >= context:
            raise ValueError(
                f"enrich.max_output_tokens={most} leaves no room for a prompt in enrich.vllm.max_model_len={context}: "
                "lower the one or raise the other"
            )
        return self

    @model_validator(mode="after")
    def _images_have_an_engine_and_a_place(self) -> Self:
        images = self.enrich.images
        if not images.max_images:
            return self
        if self.enrich.engine != "openai":
            raise ValueError(
                f"enrich.images.max_images={images.max_images}, but enrich.engine={self.enrich.engine!r} reads text "
                'only: set enrich.engine="openai" and a model that sees, or enrich.images.max_images=0'
            )
        if not images.folder and not images.hosts:
            raise ValueError(
                f"enrich.images.max_images={images.max_images}, but no image may be read: set enrich.images.folder, "
                "enrich.images.hosts, or both"
            )
        return self

    @model_validator(mode="after")
    def _trained_text_is_read(self) -> Self:
        if self.item_tower.text != "frozen" and "title" not in self.item_tower.inputs:
            raise ValueError(
                f"item_tower.text={self.item_tower.text!r} trains an encoder of titles, which item_tower.inputs leaves "
                'out: add "title" to it, or set item_tower.text="frozen"'
            )
        return self

    @model_validator(mode="after")
    def _pairs_go_through_at_once(self) -> Self:
        if self.item_tower.chunk_size is not None and self.item_tower.behaviour.epochs:
            raise ValueError(
                "item_tower.chunk_size cuts the batches of SimCSE and not those of item_tower.behaviour: leave it out "
                "and lower both batch sizes, or set item_tower.behaviour.epochs=0"
            )
        return self

    @model_validator(mode="after")
    def _precision_is_kept(self) -> Self:
        others = {"user_tower": self.user_tower.train, "ranker": self.ranker.train, "fit": self.fit.train}
        for name, train in others.items():
            if train.precision != "float32":
                raise ValueError(
                    f"{name}.train.precision={train.precision!r} is not implemented, only item_tower.train has it: "
                    'set it to "float32"'
                )
        return self

    @model_validator(mode="after")
    def _semantics_are_read(self) -> Self:
        if self.user_tower.semantics and not self.user_tower.adapter:
            raise ValueError(
                f"user_tower.semantics={self.user_tower.semantics} is read by the adapter, and user_tower.adapter=0 is "
                "none: set user_tower.adapter to its hidden width, such as 512"
            )
        if self.user_tower.semantics and not self.user_tower.content:
            raise ValueError(
                f"user_tower.semantics={self.user_tower.semantics} is content, which user_tower.content=false leaves "
                "out: set one of them otherwise"
            )
        return self

    @model_validator(mode="after")
    def _transferred_rows_fit(self) -> Self:
        dim, width = self.ranker.embedding_dim, self.item_tower.width
        if self.ranker.transfer == "copy" and dim != width:
            raise ValueError(
                f'ranker.transfer="copy" takes rows as they are, but ranker.embedding_dim={dim} and item_tower.width='
                f'{width} differ: set ranker.embedding_dim={width} or ranker.transfer="project"'
            )
        if self.ranker.transfer == "none" and self.ranker.freeze_steps:
            raise ValueError(
                f'ranker.freeze_steps={self.ranker.freeze_steps} holds transferred tables, and ranker.transfer="none" '
                'transfers none: set it to 0 or ranker.transfer="project"'
            )
        return self

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        for name, heads in (("item_tower", self.item_tower.heads), ("user_tower", self.user_tower.heads)):
            if self.item_tower.width % heads:
                raise ValueError(f"{name}.heads={heads} must divide item_tower.width={self.item_tower.width}")
        return self

    @property
    def root(self) -> Path:
        """Folder of this recipe's artifacts."""
        return Path(self.store).resolve() / self.name

    def at(self, stage: str) -> Path:
        """Folder of one stage's artifact."""
        return self.root / stage
