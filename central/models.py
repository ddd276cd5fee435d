"""Short names of models, how many parameters one has, what none exceeds, and the files of their tokenizers."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json")
SENTENCEPIECE_FILES = ("spiece.model", "sentencepiece.bpe.model", "tokenizer.model")
LARGEST_SIZE = 10**7  # of anything that a configuration counts
SIZES = (
    *("hidden_size", "intermediate_size", "num_hidden_layers"),
    *("vocab_size", "max_position_embeddings", "type_vocab_size"),
)


@dataclass(frozen=True)
class Model:
    """`pretrained`: where fine-tuning starts; `trained_as`, `config`: name and size of what pre-training makes."""

    pretrained: str
    trained_as: str = ""
    config: str = ""


MODELS = {
    "base": Model("bert-base-uncased", "bert-base-uncased", "bert_base_config.json"),
    "large": Model("bert-large-uncased-whole-word-masking", "bert-large-uncased", "bert_config.json"),
    "roberta-base": Model("roberta-base"),
    "roberta-large": Model("roberta-large"),
}
# Google's miniatures: layers x hidden size, one head for 64.
for _name, _layers, _hidden in (("tiny", 2, 128), ("mini", 4, 256), ("small", 4, 512), ("medium", 8, 512)):
    _hub_name = f"google/bert_uncased_L-{_layers}_H-{_hidden}_A-{_hidden // 64}"
    MODELS[_name] = Model(_hub_name, _name, f"bert_{_name}_config.json")


def without_tokenizer(folder: str) -> list[str]:
    """The complaint about a model's folder that holds no file of a tokenizer."""
    if any(os.path.exists(os.path.join(folder, name)) for name in (*TOKENIZER_FILES, *SENTENCEPIECE_FILES)):
        return []
    return [
        f"{folder}: a model without a tokenizer (no {', '.join(TOKENIZER_FILES[:-1])} or {TOKENIZER_FILES[-1]}): copy"
        " the model's vocab.txt into it, or name a tokenizer with --tokenizer_name"
    ]


def parameter_count(config: Mapping[str, int]) -> int:
    """Parameters of BERT with both heads, from its configuration; 0 where that says too little."""
    try:
        hidden, inner, layers, *tables = (config[name] for name in SIZES)
    except KeyError:
        return 0
    layer = 4 * hidden * (hidden + 1) + 2 * hidden * inner + inner + hidden + 4 * hidden
    heads = 2 * hidden * (hidden + 1) + 2 * hidden + config["vocab_size"] + 2 * hidden + 2
    return sum(tables) * hidden + 2 * hidden + layers * layer + heads
