"""Fine-tuning on the emulated Gaudi beyond the matrix: fused attention, graphs of inference and of torch.compile."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pretraining_helpers
import pytest
import torch
from emulated_gaudi import ROOT, Gaudi
from torch.nn import functional as F
from transformers import TrainingArguments

from central.finetuning.features import Features, Ragged
from central.finetuning.resume import deciding
from central.finetuning.trainer import FineTuningTrainer, ReseedDropout, weights_on_host
from central.runtime.device import open_device
from central.runtime.dropout import Dropout, DropoutBits
from central.runtime.rank import Rank

pytest_plugins = ("finetuning_fixtures",)

GLUE = ROOT / "transformers/examples/pytorch/text-classification/run_glue.py"


@pytest.fixture
def gaudi(tmp_path):
    return Gaudi(tmp_path)


@pytest.fixture
def without_dropout(tmp_path, tiny_model) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps({**config, **none}))
    return folder


def words(model: Path, pairs: Path, out: Path, *more: str) -> list[str]:
    return [
        *(str(GLUE), f"--model_name_or_path={model}", f"--output_dir={out}", f"--cache_dir={out.parent / 'cache'}"),
        *("--task_name=MRPC", f"--train_file={pairs}/train.tsv", f"--validation_file={pairs}/dev.tsv", "--do_train"),
        *("--max_seq_length=32", "--per_device_train_batch_size=8", "--learning_rate=1e-3", "--seed=5"),
        *("--logging_steps=1", "--report_to=none", *more),
    ]


def losses(out: Path) -> dict[int, list[float]]:
    found = {}
    for entry in json.loads((out / "trainer_state.json").read_text())["log_history"]:
        if "loss" in entry:
            found.setdefault(entry["step"], []).append(entry["loss"])
    return found


def test_fused_attention_and_graphs_of_inference(gaudi, without_dropout, pairs):
    """In lazy mode, with a log at every step: the losses of the cpu, under the steps they belong to."""
    environ = {"HF_HOME": str(gaudi.folder / "hf"), "HF_HUB_OFFLINE": "1"}
    shared = ["--do_eval", "--max_steps=4", "--save_strategy=no", "--per_device_eval_batch_size=4"]
    shared += ["--eval_strategy=steps", "--eval_steps=2"]  # amid the training, whose next step needs gradients
    plain = words(without_dropout, pairs, gaudi.folder / "cpu", *shared, "--no_cuda")
    done = subprocess.run(
        [sys.executable, *plain], env=pretraining_helpers.environment(**environ), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    flags = ["--use_habana", "--use_lazy_mode", "--fused_sdpa", "--use_hpu_graphs_for_inference"]
    argv = words(without_dropout, pairs, gaudi.folder / "hpu", *shared, *flags)
    refused = Gaudi(gaudi.folder, generation=1).run(argv, **environ)
    assert refused.stderr.splitlines()[-1] == "error: the first Gaudi has no fused attention: leave out --fused_sdpa"
    done = gaudi.run(argv, PT_HPU_FORCE_TANH_FOR_GELU="0", **environ)
    assert done.returncode == 0, done.stderr[-2000:]
    found, expected = (json.loads((gaudi.folder / name / "all_results.json").read_text()) for name in ("hpu", "cpu"))
    for name in ("eval_loss", "eval_accuracy", "train_loss"):
        # The last batch of an evaluation is filled up on hpu, and its copies count in the loss.
        assert found[name] == pytest.approx(expected[name], rel=2e-3 if name == "eval_loss" else 1e-4), name
    found, expected = (losses(gaudi.folder / name) for name in ("hpu", "cpu"))
    assert sorted(found) == sorted(expected) == [1, 2, 3, 4]
    for step, (loss,) in expected.items():
        assert found[step] == [pytest.approx(loss, rel=1e-4)], step
    (report,) = (report for report in gaudi.reports() if report["optimizer_steps"])
    assert 0 < report["inference_graphs"] <= 4  # one a length, and no forward pass of the training
    inside = [sync for sync in report["synced"] if sync["optimizer_step"] in (1, 3)]
    assert inside == [], "a log waited for the card"


@pytest.mark.slow
def test_a_compiled_fine_tuning_is_static_and_repeats_its_masks(gaudi, tiny_model, pairs):
    """Batches of four lengths, with dropout: killed after step 5 and resumed from step 3, the losses are the same."""
    more = ["--max_steps=6", "--save_steps=3", "--use_habana", "--torch_compile", "--overwrite_output_dir"]
    environ = {"HF_HOME": str(gaudi.folder / "hf"), "HF_HUB_OFFLINE": "1"}
    whole = gaudi.run(words(tiny_model, pairs, gaudi.folder / "whole", *more), **environ)
    assert whole.returncode == 0, whole.stderr[-2000:]
    argv = words(tiny_model, pairs, gaudi.folder / "killed", *more)
    killed = gaudi.run(argv, HPU_EMULATOR_KILL="5", **environ)
    assert killed.returncode != 0 and "Traceback" not in killed.stderr, killed.stderr[-2000:]
    resumed = gaudi.run([*argv, "--resume_from_checkpoint"], **environ)
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    assert losses(gaudi.folder / "killed") == losses(gaudi.folder / "whole")
    for report in gaudi.reports():
        assert report["dynamic_graphs"] == report["recompile_limits"] == 0


@pytest.mark.parametrize("bits", [None, DropoutBits()], ids=["torch's", "a cpu's own"])
def test_every_step_has_masks_of_its_own(bits):
    from types import SimpleNamespace

    callback, ones = ReseedDropout(bits), torch.ones(64)

    def drop() -> list[float]:
        return (F.dropout(ones) if bits is None else Dropout.apply(bits, ones, 0.5)).tolist()

    def mask(step: int, rank: int = 0, seed: int = 3) -> list[float]:
        args = SimpleNamespace(seed=seed, process_index=rank)
        callback.on_step_begin(args, SimpleNamespace(global_step=step), None)
        return drop()

    first = mask(1)
    assert drop() != first == mask(1)
    assert first not in (mask(2), mask(1, rank=1), mask(1, seed=4))


def test_a_rank_that_does_not_save_leaves_the_files_of_the_one_that_does(tmp_path):
    """That one may have written the weights and not yet what it writes after them."""
    from types import SimpleNamespace

    (tmp_path / "model.safetensors").write_bytes(b"")
    trainer = FineTuningTrainer.__new__(FineTuningTrainer)
    trainer.device = open_device("cpu", "eager", "fp32", Rank())
    trainer.is_distributed_loading_by_transformers = False
    trainer.args = SimpleNamespace(hub_token=None, should_save=False, output_dir=str(tmp_path))
    trainer._save()


def test_weights_that_are_one_stay_one_on_the_host():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    model[1].weight = model[0].weight
    found = weights_on_host(model)
    assert found["0.weight"] is found["1.weight"] and found["0.bias"] is not found["1.bias"]
    assert {name: tensor.requires_grad for name, tensor in found.items()} == dict.fromkeys(model.state_dict(), False)


def test_a_run_that_changes_device_is_the_same_run(tmp_path):
    """hpu takes torch's AdamW or Habana's, cpu and cuda the fused form of torch's: one optimizer, to a resume."""
    features = Features({"input_ids": Ragged.of([[1, 2], [3]]), "labels": np.arange(2)})
    of_device = [
        deciding(TrainingArguments(output_dir=str(tmp_path), use_cpu=True, optim=optim), features)
        for optim in ("adamw_torch", "adamw_torch_fused")
    ]
    assert of_device[0] == of_device[1]
    other = deciding(TrainingArguments(output_dir=str(tmp_path), use_cpu=True, optim="sgd"), features)
    assert other != of_device[0]
