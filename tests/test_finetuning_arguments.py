"""The command line of fine-tuning: the reference's words, old names, empty values; the output folder."""

import inspect
import json
import os
from dataclasses import fields
from functools import partial

import pytest
from question_answering import QuestionArguments
from transformers import Trainer

from central.finetuning import output_folder, script
from central.finetuning.arguments import DataArguments, ReferenceFlags, modernise, parse
from central.finetuning.task import Task
from central.finetuning.trainer import FineTuningTrainer, missing_methods
from central.runtime import exits
from central.runtime.exits import BadRequest
from central.runtime.rank import Rank

MODEL = ["--model_name_or_path=m", "--output_dir=o", "--do_train"]


def understood(*words):
    return parse([*MODEL, *words], DataArguments, Rank())


def test_the_words_of_the_reference_for_cpu():
    request = understood(
        "--no_cuda", "--use_fused_adam", "--overwrite_output_dir", "--num_train_epochs=", "--save_steps="
    )
    training = request.training
    assert training.device.type == "cpu" and training.use_cpu and not training.bf16
    assert training.num_train_epochs == 3 and training.save_steps == 500
    assert request.flags.overwrite_output_dir and request.flags.use_fused_adam
    assert training.optim == "adamw_torch_fused"
    assert training.ddp_find_unused_parameters is False and training.ddp_bucket_cap_mb == 230


def test_what_is_taken_in_another_way_is_said_once():
    _, flags, notes = modernise(
        ["--num_train_epochs=", "--save_steps=", "--use_fused_adam", "--hmp_opt_level=O1", "--logging_dir", "x"]
    )
    assert len(notes) == 2
    assert notes[0] == "--num_train_epochs, --save_steps: empty, taken as the default"
    assert notes[1] == "--hmp_opt_level: accepted, no effect here" and flags.logging_dir == "x"
    _, flags, notes = modernise(
        ["--use_habana", "--use_fused_adam", "--hmp", "--hmp_bf16=a.txt", "--hmp_fp32", "b.txt"]
    )
    assert notes == [] and flags.hmp and (flags.hmp_bf16, flags.hmp_fp32) == ("a.txt", "b.txt")


def test_what_the_launcher_gives_on_every_device_is_not_commented_on():
    _, flags, notes = modernise(["--no_cuda", "--use_fused_adam", "--use_fused_clip_norm"])
    assert notes == [] and flags.use_fused_adam and flags.use_fused_clip_norm


def test_flags_of_habanas_later_releases():
    words, flags, notes = modernise(
        "--use_habana --use_lazy_mode False --autocast --use_torch_compile --enable-tensorboard-logging "
        "--gaudi_config_name Habana/bert-large --throughput_warmup_steps 3 --seed 4".split()
    )
    assert flags.hmp and flags.use_habana and not flags.use_lazy_mode
    assert words == ["--torch_compile", "--report_to=tensorboard", "--seed", "4"]
    assert [note.split()[0] for note in notes] == ["--gaudi_config_name", "--throughput_warmup_steps"]


@pytest.mark.parametrize(
    ("old", "name", "value"),
    [
        (["--evaluation_strategy", "epoch"], "eval_strategy", "epoch"),
        (["--warmup_ratio=0.1"], "warmup_steps", 0.1),
        (["--per_gpu_train_batch_size", "4"], "per_device_train_batch_size", 4),
        (["--hmp"], "bf16", True),
        (["--resume_from_checkpoint"], "resume_from_checkpoint", "True"),
        (["--resume_from_checkpoint", "--seed=3"], "seed", 3),
        (["--resume_from_checkpoint", "o/checkpoint-3"], "resume_from_checkpoint", "o/checkpoint-3"),
        (["--no_cuda", "False"], "seed", 42),
        (["--adafactor"], "optim", "adafactor"),
        (["--adafactor", "--seed=3"], "seed", 3),
        (["--push_to_hub_model_id=me/mine"], "hub_model_id", "me/mine"),
        (["--trust_remote_code", "True", "--seed=3"], "seed", 3),
        (["--past_index=-1", "--dispatch_batches", "False"], "seed", 42),
    ],
)
def test_names_of_older_versions(old, name, value):
    assert getattr(understood("--no_cuda", *old).training, name) == value


def test_all_problems_are_told_at_once():
    with pytest.raises(BadRequest) as error:
        parse(
            ["--model_name_or_path=m", "--no_cuda", "--typo=1", "--use_lazy_mode", "--train_file=/no/file"],
            DataArguments,
            Rank(),
        )
    told = "\n".join(error.value.problems)
    for part in ("--typo=1", "--use_lazy_mode", "--output_dir", "nothing to do", "/no/file"):
        assert part in told
    for words in (
        ["--seed=x"],
        ["--no_cuda=perhaps"],
        ["--fp16"],
        ["--max_train_samples=0"],
        ["--num_train_epochs=-1"],
        ["--prediction_loss_only"],
        ["--eval_do_concat_batches=False"],
    ):
        with pytest.raises((BadRequest, SystemExit)):
            understood("--no_cuda", *words)


def test_numbers_below_1_are_told_together():
    with pytest.raises(BadRequest) as error:
        understood("--no_cuda", "--max_eval_samples=0", "--max_train_samples=-1", "--preprocessing_num_workers=0")
    assert len(error.value.problems) == 2  # the last means nothing here


def test_a_gaudi_that_is_not_there_is_said():
    with pytest.raises((BadRequest, AssertionError)):
        understood("--use_habana")


def test_a_method_that_transformers_lost_is_named_before_anything_starts(monkeypatch, capsys):
    assert missing_methods(FineTuningTrainer) == []
    for name in ("_get_grad_norm", "_get_learning_rate"):
        monkeypatch.delattr(Trainer, name)
    assert exits.run(partial(script.main, Task), []) == exits.BAD_REQUEST
    error = capsys.readouterr().err
    assert "its Trainer has no _get_grad_norm, _get_learning_rate" in error and "requirements.txt" in error


def test_every_method_that_overrides_one_of_transformers_says_so():
    """Else nothing would notice that the other one is gone."""
    inherited = {name for name, method in vars(Trainer).items() if callable(method)}
    for name in inherited & {*vars(FineTuningTrainer)} - {"__init__"}:
        assert getattr(vars(FineTuningTrainer)[name], "__override__", False), name


def test_help_shows_the_flags_of_the_reference(capsys):
    with pytest.raises(SystemExit) as stop:
        parse(["-h"], DataArguments, Rank())
    said = capsys.readouterr().out
    assert stop.value.code == 0
    for flag in fields(ReferenceFlags):
        assert f"--{flag.name}" in said and flag.metadata["help"].split()[0] in said


@pytest.mark.parametrize(
    "name",
    [
        "_clip_grad_norm",
        "_get_grad_norm",
        "_build_accelerator_args",
        "_get_eval_sampler",
        "_init_training_state",
        "_load_from_checkpoint",
        "_load_optimizer_and_scheduler",
        "_load_rng_state",
        "_save",
        "_save_rng_state",
        "training_step",
    ],
)
def test_the_private_methods_overridden_exist_with_the_same_arguments(name):
    mine, theirs = (inspect.signature(getattr(cls, name)).parameters for cls in (FineTuningTrainer, Trainer))
    assert list(mine) == list(theirs)
    assert hasattr(Trainer, "_maybe_log_save_evaluate") and hasattr(Trainer, "_get_train_sampler")
    for name, used in (
        ("_run_epoch", ["epoch", "trial", "ignore_keys_for_eval"]),
        ("_get_dataloader", ["is_training"]),
        ("_maybe_log_save_evaluate", ["tr_loss", "grad_norm", "model", "trial"]),
        ("_finalize_training", ["trial"]),
        ("_evaluate", ["trial", "ignore_keys_for_eval"]),
        ("_determine_best_metric", ["metrics", "trial"]),
        ("_save_checkpoint", ["model", "trial"]),
    ):
        there = list(inspect.signature(getattr(Trainer, name)).parameters)
        assert [each for each in there if each in used] == used


# ---- output folder


def test_of_a_file_that_cannot_be_read_the_step_before_is_named(tmp_path):
    older, newer = checkpoint(tmp_path, 8), checkpoint(tmp_path, 12)
    (problem,) = output_folder.unreadable(newer / "optimizer.pt", ValueError("cut short\nand more")).problems
    assert problem == (
        f"{newer}/optimizer.pt: cannot be read (cut short): --resume_from_checkpoint {older} goes on from the one "
        "before it"
    )
    (problem,) = output_folder.unreadable(older, OSError("broken")).problems
    assert "no whole checkpoint lies before it" in problem and "delete" not in problem


def checkpoint(folder, step, leave_out=()):
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    for name in {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"} - set(leave_out):
        (path / name).write_text("x")
    if "trainer_state.json" not in leave_out:
        (path / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return path


def test_the_newest_complete_checkpoint(tmp_path):
    assert output_folder.newest_trainer_checkpoint(tmp_path) is None
    nine = checkpoint(tmp_path, 9)
    ten = checkpoint(tmp_path, 10)
    (checkpoint(tmp_path, 11) / "trainer_state.json").write_text('{"glob')
    checkpoint(tmp_path, 12, leave_out=["trainer_state.json"])
    thirteen = checkpoint(tmp_path, 13, leave_out=["rng_state.pth"])
    with pytest.raises(BadRequest, match=f"{thirteen}: cannot be read .it has no rng_state.pth.: .* {ten} goes on"):
        output_folder.checkpoint_to_resume("True", tmp_path)  # it was whole: going back in silence would overwrite it
    (thirteen / "trainer_state.json").unlink()  # a save that was cut short
    assert output_folder.newest_trainer_checkpoint(tmp_path) == ten
    assert output_folder.checkpoint_to_resume("True", tmp_path) == ten
    assert output_folder.checkpoint_to_resume(str(nine), tmp_path) == nine
    assert output_folder.checkpoint_to_resume(None, tmp_path) is None
    with pytest.raises(BadRequest, match="not a complete checkpoint"):
        output_folder.checkpoint_to_resume(str(tmp_path / "checkpoint-12"), tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"])
@pytest.mark.parametrize("what", ["nothing", "pipe", "link"])
def test_a_checkpoint_that_lost_a_file_is_neither_read_nor_begun_anew(tmp_path, name, what):
    path = checkpoint(tmp_path, 9) / name
    path.unlink()
    if what == "pipe":
        os.mkfifo(path)
    elif what == "link":
        path.symlink_to("/no/such/place")
    with pytest.raises(BadRequest, match=f"it has no {name}.: no whole checkpoint lies before it"):
        output_folder.checkpoint_to_resume("True", tmp_path)
    with pytest.raises(BadRequest, match="not a complete checkpoint"):
        output_folder.checkpoint_to_resume(str(path.parent), tmp_path)


def test_a_used_folder_is_renamed_or_refused(tmp_path):
    out = tmp_path / "out"
    output_folder.refuse_use(out, False, {})
    assert output_folder.move_aside(out) is None
    for number in (1, 2):
        out.mkdir()
        (out / "file").write_text(str(number))
        with pytest.raises(BadRequest, match="--resume_from_checkpoint.*--overwrite_output_dir"):
            output_folder.refuse_use(out, False, {})
        output_folder.refuse_use(out, True, {})
        assert output_folder.move_aside(out) == tmp_path / f"out.{number}"
        assert (tmp_path / f"out.{number}" / "file").read_text() == str(number)


def test_a_folder_that_the_run_reads_is_not_renamed(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "train.tsv").write_text("x")
    with pytest.raises(BadRequest, match="--train_file .*would be renamed"):
        output_folder.refuse_use(tmp_path / "out", True, {"--train_file": str(tmp_path / "out" / "train.tsv")})
    with pytest.raises(BadRequest, match="is a file"):
        output_folder.refuse_use(tmp_path / "out" / "train.tsv", True, {})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--seed=-1"], "--seed -1: must be a whole number from 0, below 2**32"),
        (["--seed=4294967296"], "--seed 4294967296: must be"),
        (["--data_seed=-7"], "--data_seed -7: must be"),
        (["--learning_rate=nan"], "--learning_rate nan: must be a finite number"),
        (["--max_grad_norm=inf"], "--max_grad_norm inf: must be a finite number"),
        (["--adam_beta2=-inf"], "--adam_beta2 -inf: must be"),
        (["--num_train_epochs=nan"], "--num_train_epochs nan: must be"),
        (["--max_unknown_share=nan"], "--max_unknown_share nan: must be"),
        (["--output_dir=o\nut"], "--output_dir 'o\\nut': give a path without line ends"),
        (["--output_dir=o\udcff"], "--output_dir 'o\\udcff': give a path without line ends in it, in UTF-8"),
        (["--learning_rate=0"], "--learning_rate 0.0: must be a number above 0"),
        (["--weight_decay=-1"], "--weight_decay -1.0: must be a number from 0"),
        (["--adam_beta1=1.5"], "--adam_beta1 1.5: must be a number from 0, below 1"),
        (["--adam_epsilon=1e-320"], "--adam_epsilon 1e-320: must be a number from 1e-20"),
        (["--label_smoothing_factor=-0.1"], "--label_smoothing_factor -0.1: must be"),
        (["--max_unknown_share=-1"], "--max_unknown_share -1.0: must be a share, from 0 to 1"),
        (["--null_score_diff_threshold=nan"], "--null_score_diff_threshold nan: must be a finite number"),
        (["--dataloader_num_workers=-1"], "--dataloader_num_workers -1: must be a whole number from 0"),
        ([f"--dataloader_num_workers={10**30}"], "--dataloader_num_workers 10000"),
        (["--eval_accumulation_steps=0"], "--eval_accumulation_steps 0: must be a whole number from 1"),
        ([f"--per_device_train_batch_size={10**30}"], "--per_device_train_batch_size 10000"),
        ([f"--max_steps={10**30}"], "--max_steps 10000"),
        (["--num_train_epochs=1e30"], "--num_train_epochs 1e+30: must be a number below 2**31"),
        (["--neftune_noise_alpha=-5"], "--neftune_noise_alpha -5.0: must be a number from 0"),
        (["--logging_steps=inf"], "--logging_steps, --save_steps and --eval_steps: give finite numbers"),
        (["--label_names=x"], "--label_names ['x']: the targets are those of the task"),
        (["--batch_eval_metrics"], "--batch_eval_metrics True: scores need all outputs"),
        (["--debug=underflow_overflow"], "--debug [<DebugOption"),
        (["--fp16_full_eval"], "--fp16_full_eval True: half precision here is bfloat16"),
        (["--use_liger_kernel"], "--use_liger_kernel True: has no kernels"),
        (["--dataloader_prefetch_factor=0", "--dataloader_num_workers=1"], "--dataloader_prefetch_factor 0: must be"),
        (["--warmup_ratio=2"], "--warmup_ratio 2.0: must be a number from 0, below 1"),
        (["--warmup_ratio=-1"], "--warmup_ratio -1.0: must be"),
        (["--logging_steps=-3"], "--logging_steps -3"),
        (["--eval_steps=-2"], "--eval_steps -2"),
        (["--eval_delay=-1"], "--eval_delay -1.0: must be a number from 0"),
        (['--gradient_checkpointing_kwargs={"no": 1}'], "--gradient_checkpointing_kwargs {'no': 1}: give"),
        (["--gradient_checkpointing_kwargs=[1]"], "--gradient_checkpointing_kwargs [1]: give"),
        (["--report_to=nosuch"], "--report_to nosuch: is not installed, or nothing to report to"),
        (["--report_to=mlflow"], "--report_to mlflow: is not installed"),
        (["--save_strategy=best", "--metric_for_best_model=f1"], "--save_strategy best saves after evaluations"),
        (["--deepspeed={}", "--fsdp-config=no.json"], "--deepspeed, --fsdp_config: each rank holds the whole model"),
        (['--accelerator_config={"no": 1}'], "AcceleratorConfig.__init__() got an unexpected keyword argument 'no'"),
        (["--accelerator_config=none.json"], "[Errno 2] No such file or directory: 'none.json'"),
    ],
)
def test_numbers_that_are_none_seeds_out_of_bounds_and_lines_of_paths_are_refused_once(words, said):
    with pytest.raises(BadRequest) as error:
        parse([*MODEL, "--no_cuda=true", *words], QuestionArguments, Rank())
    (problem,) = error.value.problems
    assert problem.startswith(said)
    assert understood("--seed=4294967295", "--data_seed=0").training.seed == 2**32 - 1


@pytest.mark.parametrize("flag", ["train_file", "test_file", "tokenizer_name", "config_name", "deepspeed"])
@pytest.mark.parametrize("path", ["/dev/zero", "fifo"])
def test_devices_and_pipes_are_refused_unread_whatever_names_them(tmp_path, flag, path):
    if path == "fifo":
        path = str(tmp_path / "fifo")
        os.mkfifo(path)
    for words in ([f"--{flag}={path}"], [f"--{flag}", path]):
        with pytest.raises(BadRequest, match=f"--{flag} {path}: is no regular file"):
            understood(*words)
