"""The loss of a span: that of every example alone, however much its batch is padded."""

import json
from functools import partial

import pytest
import torch
from question_answering import span_loss
from test_finetuning_scripts import own_cache, qa_words, run  # noqa: F401
from transformers import BertConfig, BertForQuestionAnswering, RobertaConfig, RobertaForQuestionAnswering

from central.finetuning.batching import Collator, to_bucket, to_longest

pytest_plugins = ("finetuning_fixtures",)

SIZES = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
ROWS = [
    {"input_ids": torch.arange(5, 5 + length).numpy(), "start_positions": start, "end_positions": end}
    for length, start, end in ((7, 3, 5), (12, 0, 0), (9, 8, 8))
]


@pytest.mark.parametrize("padded", [to_longest, partial(to_bucket, buckets=(16,)), partial(to_bucket, buckets=(40,))])
@pytest.mark.parametrize(
    ("model_class", "config"),
    [(BertForQuestionAnswering, BertConfig), (RobertaForQuestionAnswering, RobertaConfig)],
)
def test_the_loss_and_its_gradient_do_not_depend_on_the_padding(model_class, config, padded):
    torch.manual_seed(0)
    model = model_class(config(**SIZES, pad_token_id=1, max_position_embeddings=64)).eval()
    batch = Collator(pad_token_id=1, padded=padded)(ROWS)
    loss = span_loss(model(**batch), batch)
    found = torch.autograd.grad(loss, list(model.qa_outputs.parameters()))
    alone = sum(model(**Collator(1)([row])).loss for row in ROWS) / len(ROWS)  # Hugging Face's, nothing padded
    torch.testing.assert_close(loss, alone)
    torch.testing.assert_close(found, torch.autograd.grad(alone, list(model.qa_outputs.parameters())))


def test_padding_in_training_and_evaluation_changes_no_loss(tiny_model, squad_file, tmp_path):
    """All windows are one batch: padded to its longest, or to more than that."""
    model = tmp_path / "model"
    model.mkdir()
    for file in tiny_model.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    config = json.loads((model / "config.json").read_text())
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (model / "config.json").write_text(json.dumps(config | off))
    losses = []
    for name, more in (("length", []), ("padded", ["--pad_to_max_length", "--max_seq_length=128"])):
        batch = [f"--per_device_{kind}_batch_size=64" for kind in ("train", "eval")]
        words = qa_words(model, squad_file, tmp_path / name, "--do_train", "--do_eval", "--max_train_samples=5")
        steps = ["--max_eval_samples=5", "--max_steps=4", "--logging_steps=1", *batch]
        assert run("run_qa", *words, *steps, *more) == 0
        history = json.loads((tmp_path / name / "trainer_state.json").read_text())["log_history"]
        evaluated = json.loads((tmp_path / name / "all_results.json").read_text())["eval_loss"]
        losses.append([entry["loss"] for entry in history if "loss" in entry] + [evaluated])
    assert len(losses[0]) == 5 and losses[0] == pytest.approx(losses[1], rel=1e-4)
