"""The whole hpu path on the emulated Gaudi: both phases of pre-training, MRPC and SQuAD, in every mode, type and number
of ranks. Each run is killed in the middle and resumed; its losses are those of the CPU, and its reports are clean.

All 48 under the marker hpu_matrix (`make test-hpu`), which writes what it counted to .cache/hpu_matrix.tsv; eight of
them in the ordinary suite.
"""

import itertools
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pretraining_helpers
import pytest
import torch
from emulated_gaudi import ROOT, Gaudi, free_port
from transformers.trainer_pt_utils import safe_globals

from central.finetuning.batching import HPU_ROWS
from pretraining.reports import read_log

pytest_plugins = ("finetuning_fixtures",)

TASKS, MODES, TYPES, RANKS = (
    ("phase1", "phase2", "mrpc", "squad"),
    ("lazy", "eager", "compile"),
    ("fp32", "bf16"),
    (1, 2),
)
STEPS, SAVE, LOG, KILLED = 16, 4, 2, 15  # the kill comes after the checkpoint of step 12 and the report of step 14
ACCUMULATION = 2
TUNING_BATCH = 32  # of an optimizer step of fine-tuning: in eager two parts a micro-batch on one rank, one on two
# Of a loss from the CPU's in fp32. Fine-tuning writes four digits; pre-training all, so that there fp32 is seen to be
# fp32 (the same sums in another order), and bf16 bf16.
TOLERANCE = {"fp32": 1e-4, "bf16": 2e-3}
ROUNDING = 1e-6
GLUE = ROOT / "transformers/examples/pytorch/text-classification/run_glue.py"
QA = ROOT / "transformers/examples/pytorch/question-answering/run_qa.py"
TABLE = ROOT / ".cache" / "hpu_matrix.tsv"


# In the ordinary suite: every pair of choices meets, but for the four of a task and a mode that eight runs cannot hold.
EVERY_DAY = [
    ("phase1", "compile", "bf16", 1),
    ("phase1", "lazy", "fp32", 2),
    ("phase2", "lazy", "bf16", 1),
    ("phase2", "eager", "fp32", 2),
    ("mrpc", "lazy", "bf16", 2),
    ("mrpc", "eager", "fp32", 1),
    ("squad", "compile", "fp32", 2),
    ("squad", "eager", "bf16", 1),
]
EVERYTHING = list(itertools.product(TASKS, MODES, TYPES, RANKS))


@dataclass(frozen=True)
class Task:
    """How to start one, and where its losses stand."""

    words: list[str]  # without device, data type, batch size and output folder
    script: Path
    start: Path | None = None  # checkpoints to begin with

    @property
    def pretrains(self) -> bool:
        return self.script == pretraining_helpers.SCRIPT

    def command(self, out: Path, ranks: int, *more: str) -> list[str]:
        if self.pretrains:
            folders = [f"--output_dir={out / 'results/checkpoints'}", f"--json-summary={out / 'results/dllogger.json'}"]
            batch = [f"--train_batch_size={8 // ranks}"]
        else:
            folders = [f"--output_dir={out}", f"--cache_dir={out.parent / 'cache'}"]
            batch = [f"--per_device_train_batch_size={TUNING_BATCH // ranks // ACCUMULATION}"]
        return [str(self.script), *self.words, *folders, *batch, *more]

    def micro_steps(self, mode: str, ranks: int) -> int:
        """Forwards and backwards of an optimizer step: one a micro-batch, in eager one for each part of it."""
        in_parts = mode == "eager" and not self.pretrains
        return ACCUMULATION * (TUNING_BATCH // ranks // ACCUMULATION // HPU_ROWS if in_parts else 1)

    def settles(self, ranks: int) -> int:
        """Backward passes before the first step of a process: DistributedDataParallel sorts its buckets in one."""
        return int(self.pretrains and ranks > 1 and "--phase2" not in self.words)

    @property
    def waits(self) -> int:
        """Steps after which the host may wait for the card: pre-training reports, fine-tuning logs without waiting."""
        return LOG if self.pretrains else SAVE

    def losses(self, out: Path) -> dict[int, list[float]]:
        """Losses by step of the task, all that were written: twice for a step that came again after the kill."""
        found = {}
        if self.pretrains:
            for (_, step), data in read_log(out / "results" / "dllogger.json"):
                if "average_loss" in data:
                    found.setdefault(step, []).append(data["average_loss"])
        else:
            for entry in json.loads((out / "trainer_state.json").read_text())["log_history"]:
                if "loss" in entry:
                    found.setdefault(entry["step"], []).append(entry["loss"])
        return found


@pytest.fixture(scope="module")
def tasks(tmp_path_factory, tiny_model, pairs, squad_file) -> dict[str, Task]:
    """The four tasks on tiny models without dropout, whose masks would differ between the devices."""
    folder = tmp_path_factory.mktemp("tasks")
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = pretraining_helpers.write_config(folder / "config.json", **dropout)
    model = folder / "model"
    shutil.copytree(tiny_model, model)
    written = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**written, **dropout}))
    counts = [f"--max_steps={STEPS}", f"--gradient_accumulation_steps={ACCUMULATION}", "--seed=5"]

    def phase(number: int, seq_len: int, predictions: int) -> list[str]:
        corpus = pretraining_helpers.make_corpus(
            folder / f"corpus{number}", seq_len=seq_len, max_predictions=predictions
        )
        return [
            *("--do_train", f"--input_dir={corpus}", f"--config_file={config}", *counts, f"--log_freq={LOG}"),
            *(f"--max_seq_length={seq_len}", f"--max_predictions_per_seq={predictions}"),
            *("--learning_rate=0.01", "--warmup_proportion=0.25", f"--num_steps_per_checkpoint={SAVE}"),
        ]

    tuning = [
        *(f"--model_name_or_path={model}", "--do_train", "--do_eval", "--learning_rate=1e-3", *counts),
        *(f"--logging_steps={LOG}", f"--save_steps={SAVE}", "--per_device_eval_batch_size=8", "--report_to=none"),
    ]
    training_pairs = folder / "train.tsv"
    training_pairs.write_text("".join(["Quality\t#1 String\t#2 String\n", *short_and_long_pairs(64)]))
    files = [f"--train_file={training_pairs}", f"--validation_file={pairs}/dev.tsv", f"--test_file={pairs}/test.tsv"]
    glue = ["--task_name=MRPC", "--do_predict", *files]
    questions = folder / "train.json"
    questions.write_text(
        json.dumps({"version": "1.1", "data": [{"title": "N", "paragraphs": short_and_long_paragraphs(32)}]})
    )
    squad = [f"--train_file={questions}", f"--validation_file={squad_file}", "--max_seq_length=64", "--doc_stride=16"]
    return {
        "phase1": Task(phase(1, 16, 3), pretraining_helpers.SCRIPT),
        "phase2": Task([*phase(2, 32, 5), "--phase2", "--resume_from_checkpoint"], pretraining_helpers.SCRIPT),
        "mrpc": Task([*tuning, *glue, "--max_seq_length=32"], GLUE),
        "squad": Task([*tuning, *squad], QA),
    }


# Examples of two lengths, so that all shapes come in the first steps. Their number makes whole batches: on hpu the last
# one would be filled up, on the cpu it would be a small one.


def short_and_long_pairs(count: int) -> list[str]:
    """Lines of MRPC's file of 8 and 25 tokens."""
    return [f"{i % 3 % 2}\t{'good ' * (3, 20)[i % 2]}\tw{i % 60} film\n" for i in range(count)]


def short_and_long_paragraphs(count: int) -> list[dict]:
    """Paragraphs of one window each, of 15 and 52 tokens with their question."""
    paragraphs = []
    for i in range(count):
        context = " ".join(f"w{(i + j) % 60}" for j in range((3, 40)[i % 2])) + " normandy in france ."
        answers = [{"text": "normandy", "answer_start": context.index("normandy")}]
        paragraphs.append(
            {"context": context, "qas": [{"id": f"q{i}", "question": "where is it ?", "answers": answers}]}
        )
    return paragraphs


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory, tasks):
    """Runs of the cpu device in fp32, made when they are asked for: name of the task -> output folder."""
    done = {}

    def run(name: str) -> Path:
        if name not in done:
            out = tmp_path_factory.mktemp(f"cpu_{name}") / "out"
            begin(name, out, run)
            finished = pretraining_helpers.subprocess.run(
                [pretraining_helpers.sys.executable, *tasks[name].command(out, 1, "--no_cuda")],
                env=pretraining_helpers.environment(HF_HOME=str(out.parent / "hf"), HF_HUB_OFFLINE="1"),
                capture_output=True,
                text=True,
                timeout=300,
            )
            assert finished.returncode == 0, finished.stderr[-3000:]
            done[name] = out
        return done[name]

    return run


def begin(name: str, out: Path, on_cpu) -> None:
    """Phase 2 starts from the checkpoint that the cpu wrote in phase 1."""
    if name == "phase2":
        checkpoints = out / "results" / "checkpoints"
        shutil.copytree(on_cpu("phase1") / "results" / "checkpoints" / f"ckpt_{STEPS}", checkpoints / f"ckpt_{STEPS}")


def test_the_runs_of_every_day_hold_the_pairs():
    choices = (TASKS, MODES, TYPES, RANKS)
    for i, j in itertools.combinations(range(4), 2):
        pairs_run = {(case[i], case[j]) for case in EVERY_DAY}
        missing = set(itertools.product(choices[i], choices[j])) - pairs_run
        assert len(missing) == (4 if (i, j) == (0, 1) else 0)


def hpu_words(task: Task, mode: str, data_type: str) -> list[str]:
    words = ["--use_habana"]
    words += {"lazy": ["--use_lazy_mode"], "eager": [], "compile": ["--torch_compile"]}[mode]
    if data_type == "bf16":
        lists = "bert_pt" if task.pretrains else "bert"
        words += ["--hmp", f"--hmp_bf16={ROOT}/ops_bf16_{lists}.txt", f"--hmp_fp32={ROOT}/ops_fp32_{lists}.txt"]
    return words + (["--use_fused_lamb"] if task.pretrains else ["--use_fused_adam", "--use_fused_clip_norm"])


CHOICES = ("name", "mode", "data_type", "ranks")


@pytest.mark.parametrize(CHOICES, EVERY_DAY)
def test_run(tmp_path, tasks, on_cpu, name, mode, data_type, ranks):
    check_run(tmp_path, tasks, on_cpu, name, mode, data_type, ranks)


@pytest.mark.hpu_matrix
@pytest.mark.parametrize(CHOICES, EVERYTHING)
def test_every_run(tmp_path, tasks, on_cpu, name, mode, data_type, ranks):
    row = check_run(tmp_path, tasks, on_cpu, name, mode, data_type, ranks, other_modes=True)
    write_row(f"{name}-{mode}-{data_type}-{ranks}", row)


def check_run(tmp_path, tasks, on_cpu, name, mode, data_type, ranks, other_modes: bool = False) -> dict[str, str]:
    """Kill a run in the middle, resume it, and compare its losses with the cpu's. Returns its row of the table.

    `other_modes`: the last checkpoint of a lazy run is also resumed in every mode and on the cpu.
    """
    task, gaudi, out = tasks[name], Gaudi(tmp_path), tmp_path / "out"
    begin(name, out, on_cpu)
    words = hpu_words(task, mode, data_type)
    if name == "phase2" and ranks > 1:
        words.append("--allreduce_post_accumulation")  # phase 1 has the other exchange, DistributedDataParallel
    settings = {
        "PT_HPU_FORCE_TANH_FOR_GELU": "0",  # the exact gelu, as on the cpu
        "HPU_EMULATOR_WARMUP": "9",  # an epoch with all its shapes, a report, an evaluation and a checkpoint are over
        "HF_HOME": str(tmp_path / "hf"),
    }

    killed = gaudi.run(
        task.command(out, ranks, *words), ranks, HPU_EMULATOR_KILL=str(KILLED), MASTER_PORT=str(free_port()), **settings
    )
    # A rank may be killed a moment before its peer, which then finds it gone.
    peer_is_gone = ranks > 1 and "Connection reset by peer" in killed.stderr
    assert killed.returncode != 0, killed.stderr[-3000:]
    assert peer_is_gone or "Traceback" not in killed.stderr, killed.stderr[-3000:]
    assert len(gaudi.reports()) == ranks, killed.stderr[-3000:]
    resumed = gaudi.run(
        task.command(out, ranks, *words, "--resume_from_checkpoint"), ranks, MASTER_PORT=str(free_port()), **settings
    )
    assert resumed.returncode == 0, resumed.stderr[-3000:]

    first = STEPS if name == "phase2" else 0
    expected, found = task.losses(on_cpu(name)), task.losses(out)
    assert sorted(found) == sorted(expected) == list(range(first + LOG, first + STEPS + 1, LOG))
    differences = []
    for step, (loss,) in expected.items():
        differences.append(abs(found[step][-1] / loss - 1))
        assert found[step][-1] == pytest.approx(loss, rel=TOLERANCE[data_type]), (step, found, expected)
        assert len(set(found[step])) == 1, "a step that came again after the kill had another loss"
    if task.pretrains:
        assert (max(differences) > ROUNDING) == (data_type == "bf16"), differences
    check_reports(gaudi.reports(), task, mode, ranks)
    check_files(out)
    if other_modes and mode == "lazy":
        for other in (*MODES, "cpu"):
            check_resumed_elsewhere(tmp_path / other, task, on_cpu(name), out, other, data_type, ranks, settings)
    return table_row(gaudi.reports(), max(differences), task, mode, ranks)


def check_files(out: Path) -> None:
    """Torch's own reader takes the files of every checkpoint, whatever mode they were written in."""
    files = [path for kind in ("pt", "pth") for path in out.rglob(f"*.{kind}")]
    assert files
    with safe_globals():  # as transformers does
        for file in files:
            torch.load(file, weights_only=True)


def check_resumed_elsewhere(folder, task, on_cpu, written, mode, data_type, ranks, settings) -> None:
    """From the checkpoint that a lazy run wrote before its last, the steps to the end in another mode or on the cpu."""
    folder.mkdir()
    out = folder / "out"
    shutil.copytree(written, out)
    if task.pretrains:
        last = max((out / "results" / "checkpoints").glob("ckpt_*"), key=lambda path: int(path.name[5:]))
    else:
        last = out / f"checkpoint-{STEPS}"
    shutil.rmtree(last)
    before = task.losses(out)
    gaudi = Gaudi(folder)
    if mode == "cpu":  # a resumed fine-tuning keeps its precision
        words = ["--no_cuda", *(["--bf16"] if data_type == "bf16" else [])]
    else:
        words = hpu_words(task, mode, data_type)
    if task.settles(ranks) == 0 and task.pretrains and ranks > 1:
        words.append("--allreduce_post_accumulation")
    argv = task.command(out, ranks, *words, "--resume_from_checkpoint")
    resumed = gaudi.run(argv, ranks, MASTER_PORT=str(free_port()), **settings)
    assert resumed.returncode == 0, (mode, resumed.stderr[-3000:])
    found, expected = task.losses(out), task.losses(on_cpu)
    assert sorted(found) == sorted(expected)
    again = [step for step in found if not task.pretrains or len(found[step]) > len(before[step])]
    assert max(expected) in again
    for step in again:
        assert found[step][-1] == pytest.approx(expected[step][0], rel=TOLERANCE[data_type]), (mode, step)


def is_ddps(sync: dict) -> bool:
    """Whether a wait is DistributedDataParallel's own: in the second step it makes its buckets anew, once a run.

    And the number it multiplies each gradient by, 1 / ranks, is copied to the card as that comes out of autograd.
    """
    buckets = sync["optimizer_step"] == 1 and sync["what"] == "copy to cpu" and sync["count"] == 2
    return buckets or sync["what"] == "copy to hpu:0" and sync["where"] == "a thread of autograd"


def table_row(reports: list[dict], difference: float, task: Task, mode: str, ranks: int) -> dict[str, str]:
    """What the processes of one run did, all together."""
    of_a_step, settles = task.micro_steps(mode, ranks), task.settles(ranks)
    micro_steps = sum(report["micro_steps"] for report in reports)
    marks = sum(report["mark_steps"] for report in reports)
    inside = between = 0
    for sync in (sync for report in reports for sync in report["synced"]):
        at_rest = sync["optimizer_step"] == 0 or sync["micro_step"] == settles + of_a_step * sync["optimizer_step"]
        inside += sync["count"] * (not at_rest and not is_ddps(sync))
        between += sync["count"] * (sync["optimizer_step"] % LOG != 0 and not is_ddps(sync))
    return {
        "recompilations after warm-up": str(sum(report["recompilations"] for report in reports)),
        "host syncs inside steps, per micro-step": f"{inside / micro_steps:g}",
        "host syncs between reports": str(between),
        "mark_steps per micro-step": f"{marks / micro_steps:.2f}",
        "mark_steps missing": str(sum(len(report["missing_mark_steps"]) for report in reports)),
        "largest difference of a loss from the cpu's": f"{difference:.1e}",
    }


def write_row(run: str, row: dict[str, str]) -> None:
    """Put a run that passed into the table, in place of what it left there before."""
    lines = TABLE.read_text().splitlines()[1:] if TABLE.exists() else []
    lines = [line for line in lines if not line.startswith(f"{run}\t")] + ["\t".join([run, *row.values()])]
    TABLE.parent.mkdir(exist_ok=True)
    TABLE.write_text("\n".join(["\t".join(["run", *row]), *sorted(lines)]) + "\n")


def check_reports(reports: list[dict], task: Task, mode: str, ranks: int) -> None:
    """No recompilation after warm-up, no wait inside a step or between reports, marks where they belong."""
    of_a_step, settles = task.micro_steps(mode, ranks), task.settles(ranks)
    assert len(reports) == 2 * ranks
    assert sorted(report["module_id"] for report in reports) == sorted([*range(ranks)] * 2)
    for report in reports:
        assert report["recompilations"] == 0, report["recompiled"]
        assert report["missing_mark_steps"] == []
        assert report["recompile_limits"] == report["dynamic_graphs"] == 0
        assert report["saved_device_tensors"] == 0
        assert report["micro_steps"] == settles + of_a_step * report["optimizer_steps"]
        assert (report["mark_steps"] > 2 * report["micro_steps"]) == (mode == "lazy")
        for sync in report["synced"]:
            if ranks > 1 and is_ddps(sync):
                continue
            assert sync["optimizer_step"] % task.waits == 0, str(sync)
            between = settles + of_a_step * sync["optimizer_step"]
            assert sync["optimizer_step"] == 0 or sync["micro_step"] == between, sync
    assert all(report["pending_operations"] == 0 for report in reports[ranks:])
