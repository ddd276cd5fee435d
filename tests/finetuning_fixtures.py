"""A tiny BERT and its tokenizer, and small data, for the fine-tuning tests."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    BertConfig,
    BertForPreTraining,
    BertTokenizerFast,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaTokenizer,
)

WORDS = "where is it ? . , yes no good bad film the a an in of normans gave their name to normandy france"
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS.split(), *(f"w{i}" for i in range(60))]
VOCABULARY += [*"abcdefghijklmnopqrstuvwxyz0123456789", *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz0123456789")]


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory):
    file = tmp_path_factory.mktemp("tokenizer") / "vocab.txt"
    file.write_text("\n".join(VOCABULARY) + "\n")
    return BertTokenizerFast(str(file), do_lower_case=True)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory, tiny_tokenizer) -> Path:
    """Folder of a BERT of 2 layers x 32 with random weights, dropout 0.1."""
    folder = tmp_path_factory.mktemp("tiny_model")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = BertConfig(vocab_size=len(VOCABULARY), max_position_embeddings=128, **sizes)
    BertForPreTraining(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(params=["roberta", "general"])
def tiny_roberta(request, tmp_path) -> Path:
    """Folder of a RoBERTa as small, with its own tokenizer, or with a general one that numbers segments."""
    folder = tmp_path / "tiny_roberta"
    folder.mkdir()
    pieces = ByteLevelBPETokenizer()
    marks = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    pieces.train_from_iterator([f" {WORDS}"] * 4, vocab_size=400, special_tokens=marks, show_progress=False)
    pieces.save_model(str(folder))
    merges = [tuple(line.split()) for line in (folder / "merges.txt").read_text().splitlines()[1:]]
    tokenizer = RobertaTokenizer(json.loads((folder / "vocab.json").read_text()), merges)
    if request.param == "general":
        names = {f"{name}_token": mark for name, mark in zip(("cls", "pad", "sep", "unk", "mask"), marks)}
        inputs = ["input_ids", "token_type_ids", "attention_mask"]
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer.backend_tokenizer, model_input_names=inputs, **names
        )
        assert "token_type_ids" in tokenizer("x")
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    sizes |= {"vocab_size": len(tokenizer), "max_position_embeddings": 130, "type_vocab_size": 1}
    RobertaForMaskedLM(RobertaConfig(**sizes, pad_token_id=1, bos_token_id=0, eos_token_id=2)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def pairs(tmp_path_factory) -> Path:
    """Folder with train.tsv, dev.tsv and test.tsv in MRPC's columns; lengths differ, labels can be learned."""
    folder = tmp_path_factory.mktemp("pairs")
    for name, count in (("train", 64), ("dev", 33), ("test", 9)):
        rows = []
        for i in range(count):
            label = (i * 7) % 3 > 0
            text = f"w{i % 60} " * (1 + i % 11) + ("good film" if label else "bad film")
            rows.append(
                f"{int(label)}\t{i}\t{i}\t{text}\tthe film" if name != "test" else f"{i}\t{i}\t{i}\t{text}\tthe film"
            )
        first = "index" if name == "test" else "Quality"
        (folder / f"{name}.tsv").write_text("\n".join([f"{first}\t#1 ID\t#2 ID\t#1 String\t#2 String", *rows]) + "\n")
    return folder


@pytest.fixture(scope="session")
def squad_file(tmp_path_factory) -> Path:
    """A file in SQuAD's nested form, 12 questions, some paragraphs longer than a window of 64 tokens."""
    paragraphs = []
    for i in range(12):
        context = " ".join(f"w{(i + j) % 60}" for j in range(10 + 10 * i)) + " normandy in france ."
        answers = [{"text": "normandy", "answer_start": context.index("normandy")}]
        paragraphs.append(
            {"context": context, "qas": [{"id": f"q{i}", "question": "where is it ?", "answers": answers}]}
        )
    file = tmp_path_factory.mktemp("squad") / "squad.json"
    file.write_text(json.dumps({"version": "1.1", "data": [{"title": "N", "paragraphs": paragraphs}]}))
    return file
