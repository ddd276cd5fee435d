"""Short names of models, and what no model exceeds."""

from dataclasses import dataclass

LARGEST_SIZE = 10**7  # of anything that a configuration counts


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
