"""Small encoders with random weights, of the structures that text encoders have, and one in a folder of its own."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoConfig, AutoModel, PreTrainedModel, PreTrainedTokenizerFast

VOCABULARY = 60
WIDTH = 32
"""Of the one in a folder."""
LAYERS = 3
_BERT = {
    "hidden_size": 12,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "bert": _BERT,
    "distilbert": {"dim": 12, "n_layers": LAYERS, "n_heads": 2, "hidden_dim": 24, "max_position_embeddings": 40},
    "roberta": _BERT,
    "albert": {**_BERT, "embedding_size": 12},  # all layers are one
    "electra": {**_BERT, "embedding_size": 6},  # a projection between embeddings and layers
}


def model(kind: str, **settings: Any) -> PreTrainedModel:
    """An encoder in eval mode; the same weights each time."""
    config = AutoConfig.for_model(kind, **{"vocab_size": VOCABULARY, **SETTINGS[kind], **settings})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made: PreTrainedModel = AutoModel.from_config(config)
    return made.eval()


def write(folder: Path, words: list[str]) -> Path:
    """A DistilBERT of width WIDTH with its tokenizer, as the hub would give it; returns `folder`."""
    pieces = [*"abcdefghijklmnopqrstuvwxyz", *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz")]
    names = list(dict.fromkeys(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *pieces]))
    vocabulary = {name: number for number, name in enumerate(names)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token="[MASK]", **special).save_pretrained(folder)
    model("distilbert", dim=WIDTH, n_heads=4, hidden_dim=64, vocab_size=len(names)).save_pretrained(folder)
    return folder


def change(folder: Path) -> None:
    """Replace a weight of the encoder in `folder`: the last one that its states go through, so that all move."""
    weights = load_file(folder / "model.safetensors")
    weights[f"transformer.layer.{LAYERS - 1}.output_layer_norm.bias"] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
