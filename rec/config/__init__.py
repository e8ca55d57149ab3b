"""Configuration: one frozen tree, one TOML recipe per use, dotted overrides on the command line.

A function takes its branch of the tree, never the tree. Secrets and addresses (`REC_DATABASE_URL`) come
from the environment and are no part of the tree, so that it can be stored in every manifest and printed.
"""

from rec.config.branch import Branch
from rec.config.enrich import EMBEDDED_MODELS, Enrich, Images, Tagger, Vllm
from rec.config.operate import Evaluate, Feedback, Index
from rec.config.ranker import Fit, Quotas, Ranker
from rec.config.recipes import explained, load, recipes
from rec.config.source import Columns, Source
from rec.config.text import Text, Vocab
from rec.config.towers import Behaviour, ItemTower, UserTower
from rec.config.train import FitTrain, ItemTrain, RankerTrain, Train, UserTrain
from rec.config.tree import Config

__all__ = [
    "EMBEDDED_MODELS",
    "Behaviour",
    "Branch",
    "Columns",
    "Config",
    "Enrich",
    "Evaluate",
    "Feedback",
    "Fit",
    "FitTrain",
    "Images",
    "Index",
    "ItemTower",
    "ItemTrain",
    "Quotas",
    "Ranker",
    "RankerTrain",
    "Source",
    "Tagger",
    "Text",
    "Train",
    "UserTower",
    "UserTrain",
    "Vllm",
    "Vocab",
    "explained",
    "load",
    "recipes",
]
