"""BERT with its pre-training heads, one for each loss; weights are named as Hugging Face names them.

Shapes: T tokens of a micro-batch (padding counted only where shapes are static), N sequences, M masked positions,
h hidden size, V vocabulary padded to a multiple of 8. How each step is computed is the business of the `kernels`
that the model is given (`kernels/plain.py`, `cpu.py`, `cuda.py`); the network is here.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from central.files import parse_json
from central.models import LARGEST_SIZE
from pretraining.batches import MicroBatch
from pretraining.kernels.choice import Kernels
from pretraining.kernels.plain import Batch

VOCAB_MULTIPLE = 8
LEAST = {"type_vocab_size": 2, "pad_token_id": 0}  # of the whole numbers of a configuration; 1 of the others
PADDED_ROW_BIAS = -10000.0  # a padded vocabulary row never takes part in the softmax


@dataclass(frozen=True)
class BertConfig:
    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"  # exact, by the error function
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int = 0

    def __post_init__(self) -> None:
        if self.hidden_act != "gelu":
            raise ValueError(f"hidden_act {self.hidden_act!r}: only 'gelu' is implemented")
        for field in dataclasses.fields(self):
            value, least = getattr(self, field.name), LEAST.get(field.name, 1)
            if field.type is int and not (type(value) is int and value >= least):
                raise ValueError(f"{field.name} {value!r} is not a whole number from {least} on")
            if field.type is int and value > LARGEST_SIZE:
                raise ValueError(f"{field.name} is more than {LARGEST_SIZE}")
            if field.type is float and not (type(value) in (int, float) and 0 <= value < 1):
                raise ValueError(f"{field.name} {value!r} is not in [0, 1)")
        if self.pad_token_id >= self.vocab_size:
            raise ValueError(f"pad_token_id {self.pad_token_id} is not below vocab_size {self.vocab_size}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )

    @classmethod
    def from_json(cls, path: Path, **overrides: Any) -> "BertConfig":
        """Read BERT's keys from a JSON file, other keys are passed over; ValueError names the file."""
        try:
            found = parse_json(Path(path).read_text(encoding="utf-8"))
            known = {field.name for field in dataclasses.fields(cls)}
            return cls(**{key: value for key, value in {**found, **overrides}.items() if key in known})
        except (OSError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: not a BERT configuration ({error})") from error

    @property
    def padded_vocab_size(self) -> int:
        return -(-self.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE

    def to_hugging_face(self, architecture: str = "BertForPreTraining") -> dict:
        """The content of a `config.json` that `from_pretrained` of this class reads."""
        return {"architectures": [architecture], "model_type": "bert", **dataclasses.asdict(self)}


class Embeddings(nn.Module):
    def __init__(self, config: BertConfig):
        super().__init__()
        h = config.hidden_size
        self.word_embeddings = nn.Embedding(config.padded_vocab_size, h, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, h)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, h)
        self.LayerNorm = nn.LayerNorm(h, eps=config.layer_norm_eps)
        self.dropout = config.hidden_dropout_prob

    def forward(self, batch: MicroBatch, kernels: Kernels) -> Tensor:
        x = self.word_embeddings(batch.input_ids)
        x = x + self.position_embeddings(batch.positions) + self.token_type_embeddings(batch.segment_ids)
        return kernels.dropout(kernels.layer_norm(x, self.LayerNorm), self.dropout, self.training)  # T x h


class SelfAttention(nn.Module):
    def __init__(self, config: BertConfig):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(config.hidden_size, config.hidden_size) for _ in range(3))
        self.num_heads = config.num_attention_heads
        self.dropout = config.attention_probs_dropout_prob

    def forward(self, x: Tensor, batch: Batch, kernels: Kernels) -> Tensor:
        qkv = kernels.joint_linear(x, (self.query, self.key, self.value))  # T x 3h
        return kernels.attention(qkv, batch, self.num_heads, self.dropout, self.training)  # T x h


class Output(nn.Module):
    """Dense, dropout, residual and layer norm, as they end both halves of a layer."""

    def __init__(self, in_features: int, config: BertConfig):
        super().__init__()
        self.dense = nn.Linear(in_features, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = config.hidden_dropout_prob


class Attention(nn.Module):
    def __init__(self, config: BertConfig):
        super().__init__()
        self.self = SelfAttention(config)
        self.output = Output(config.hidden_size, config)

    def forward(self, x: Tensor, batch: Batch, kernels: Kernels) -> Tensor:
        y = kernels.linear(self.self(x, batch, kernels), self.output.dense)
        return kernels.dropout_add_norm(y, x, self.output.LayerNorm, self.output.dropout, self.training)


class Intermediate(nn.Module):
    def __init__(self, config: BertConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)


class Layer(nn.Module):
    def __init__(self, config: BertConfig):
        super().__init__()
        self.attention = Attention(config)
        self.intermediate = Intermediate(config)
        self.output = Output(config.intermediate_size, config)

    def forward(self, x: Tensor, batch: Batch, kernels: Kernels) -> Tensor:
        x = self.attention(x, batch, kernels)
        y = kernels.feed_forward(x, self.intermediate.dense, self.output.dense)
        return kernels.dropout_add_norm(y, x, self.output.LayerNorm, self.output.dropout, self.training)


class Encoder(nn.Module):
    def __init__(self, config: BertConfig):
        super().__init__()
        self.layer = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))


class Pooler(nn.Module):
    def __init__(self, config: BertConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)


class Bert(nn.Module):
    def __init__(self, config: BertConfig, pools: bool):
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)
        self.pooler = Pooler(config) if pools else None

    def forward(self, batch: MicroBatch, kernels: Kernels, checkpoint_activations: bool) -> Tensor:
        x, batch = self.embeddings(batch, kernels), kernels.prepared(batch)
        for layer in self.encoder.layer:
            if checkpoint_activations:
                x = kernels.recomputed(layer, x, batch)
            else:
                x = layer(x, batch, kernels)
        return x  # T x h


class Transform(nn.Module):
    def __init__(self, config: BertConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)


class Predictions(nn.Module):
    """Masked-LM head. Its decoder is the word embedding itself, handed over at each forward."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.transform = Transform(config)
        self.bias = nn.Parameter(torch.zeros(config.padded_vocab_size))

    def loss(self, hidden: Tensor, batch: MicroBatch, kernels: Kernels, bert: Bert) -> tuple[Tensor, Tensor]:
        """Summed loss and number of right answers over the masked tokens."""
        x = kernels.linear(hidden.index_select(0, batch.masked_positions), self.transform.dense)
        x = kernels.layer_norm(nn.functional.gelu(x), self.transform.LayerNorm)  # M x h
        weight = bert.embeddings.word_embeddings.weight
        return kernels.masked_lm_loss(x, weight, self.bias, batch.masked_labels, batch.masked_weights)


class NextSentence(nn.Linear):
    """Next-sentence head: whether the second segment of a sequence is a random one."""

    def __init__(self, config: BertConfig):
        super().__init__(config.hidden_size, 2)

    def loss(self, hidden: Tensor, batch: MicroBatch, kernels: Kernels, bert: Bert) -> tuple[Tensor, Tensor]:
        """Summed loss and number of right answers over the sequences."""
        assert bert.pooler is not None
        cls = hidden.index_select(0, batch.cls_positions)
        pooled = torch.tanh(kernels.linear(cls, bert.pooler.dense))  # N x h
        scores = kernels.linear(pooled, self)  # N x 2
        return next_sentence_loss(scores, batch.next_sentence_labels, batch.next_sentence_weights)


HEADS: dict[str, tuple[str, type[Predictions | NextSentence]]] = {  # of a loss: name and class
    "mlm": ("predictions", Predictions),
    "nsp": ("seq_relationship", NextSentence),
}
POOLED = ("nsp",)  # losses whose heads see [CLS] through the pooler


class Heads(nn.Module):
    predictions: Predictions
    seq_relationship: NextSentence

    def __init__(self, config: BertConfig, losses: Sequence[str]):
        super().__init__()
        for name, head in (HEADS[loss] for loss in losses):
            self.add_module(name, head(config))


class BertForPreTraining(nn.Module):
    """Calling it with a batch returns sums, so that micro-batches of any size add up to one step's loss."""

    def __init__(
        self,
        config: BertConfig,
        kernels: Kernels,
        checkpoint_activations: bool = False,
        losses: Sequence[str] = ("mlm", "nsp"),
    ):
        super().__init__()
        self.config = config
        self.kernels = kernels
        self.checkpoint_activations = checkpoint_activations
        self.bert = Bert(config, pools=any(loss in POOLED for loss in losses))
        self.cls = Heads(config, losses)

    def forward(self, batch: MicroBatch) -> Tensor:
        """Sums over the batch, fp32: each loss, then the number of right answers of each."""
        with self.kernels.autocast():
            hidden = self.bert(batch, self.kernels, self.checkpoint_activations and self.training)
            heads: Any = self.cls.children()
            found = [head.loss(hidden, batch, self.kernels, self.bert) for head in heads]
        return torch.stack([*(loss for loss, _ in found), *(right for _, right in found)])


def next_sentence_loss(scores: Tensor, labels: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy and number of right answers; `weights` N, 0 where a packed row has no such sequence."""
    losses = nn.functional.cross_entropy(scores.float(), labels, reduction="none")
    right = (scores.argmax(-1) == labels).float()
    return (losses.sum(), right.sum()) if weights is None else ((losses * weights).sum(), (right * weights).sum())


@torch.no_grad()
def initialise(model: BertForPreTraining, seed: int) -> None:
    """Fresh weights, a function of the seed alone: normal matrices, zero biases, layer norms at the identity."""
    generator = torch.Generator().manual_seed(seed)
    vocab_size, std = model.config.vocab_size, model.config.initializer_range
    for name, parameter in model.named_parameters():
        if "LayerNorm.weight" in name:
            parameter.fill_(1.0)
        elif parameter.dim() == 1:
            parameter.zero_()
        else:
            parameter.zero_()
            rows = vocab_size if "word_embeddings" in name else len(parameter)  # padded rows stay zero
            parameter[:rows].normal_(0.0, std, generator=generator)
    model.bert.embeddings.word_embeddings.weight[model.config.pad_token_id].zero_()
    model.cls.predictions.bias[vocab_size:] = PADDED_ROW_BIAS


def decays(name: str) -> bool:
    """Whether weight decay (and with it LAMB's trust ratio) applies: to matrices, not to biases and layer norms."""
    return not (name.endswith("bias") or "LayerNorm" in name)
