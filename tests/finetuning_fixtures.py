"""A tiny BERT and its tokenizer, and small data, for the fine-tuning tests."""

import json
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForPreTraining, BertTokenizerFast

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
