"""`demo_bert.py finetuning`: its options, and the words it gives to run_glue.py and run_qa.py."""

import os

from central.launch.options import (
    BATCHES,
    DATA,
    DEVICE,
    MODEL,
    REQUIRED,
    SAVING,
    SCHEDULE,
    SEEDS,
    Common,
    choice,
    count,
    epochs,
    option,
    path,
    path_or,
    positive,
    seed_number,
    switch,
)
from central.models import MODELS

GLUE_SCRIPT = "transformers/examples/pytorch/text-classification/run_glue.py"
QA_SCRIPT = "transformers/examples/pytorch/question-answering/run_qa.py"
SUMMARY_SCRIPT = "central/finetuning/summarize_seeds.py"
OP_LISTS = ("ops_bf16_bert.txt", "ops_fp32_bert.txt")
QA_TASKS = ("squad", "squad_v2")
TASKS = ("mrpc", *QA_TASKS, "cola", "sst2", "stsb", "qqp", "mnli", "qnli", "rte", "wnli")

DESCRIPTION = """Fine-tune BERT or RoBERTa on a GLUE task or on SQuAD, with the data of the Hub or with local files.
The model is a name, a local folder, a Hub id, or the --output_dir of a pre-training run."""
EXAMPLES = """example: MRPC with evaluation, on the CPU
  python demo_bert.py finetuning --model_name_or_path base --data_type fp32 --device cpu --task_name mrpc \\
      --batch_size 32 --num_train_epochs 3 --do_eval --output_dir /tmp/mrpc"""


class Settings(Common):
    """Settings of a fine-tuning run."""

    model_name_or_path: str = option(MODEL, path_or(*MODELS), REQUIRED, f"{', '.join(MODELS)}; a folder; a Hub id")
    task_name: str = option(DATA, choice(*TASKS), "mrpc", "decides script, metric and labels", "-t")
    dataset_name: str | None = option(
        DATA, path_or("glue", *TASKS), None, "data set of the Hub, or a folder; unset: the task's own"
    )
    train_file: str | None = option(DATA, path, None, "local training data; wins over --dataset_name")
    validation_file: str | None = option(DATA, path, None, "local data to evaluate on")
    test_file: str | None = option(DATA, path, None, "local data to predict on")
    max_seq_length: int = option(DATA, count, 128, "tokens in a sequence", "-s")
    doc_stride: int = option(DATA, count, 128, "tokens two windows of a long paragraph share (SQuAD)", "-ds")
    batch_size: int = option(BATCHES, count, 8, "training examples one rank sees at once", "-b")
    per_device_eval_batch_size: int = option(BATCHES, count, 8, "evaluation examples one rank sees at once", "-v")
    learning_rate: float = option(SCHEDULE, positive, 2e-5, "peak learning rate", "-r")
    num_train_epochs: float = option(SCHEDULE, epochs, 1, "passes over the training data", "-e")
    max_steps: int | None = option(SCHEDULE, count, None, "optimizer steps, in place of --num_train_epochs")
    seed: int = option(SCHEDULE, seed_number, 42, "seed of the new layer, data order and dropout")
    seeds: int = option(SCHEDULE, count, 1, "runs with the seeds from --seed on, and a summary of their scores")
    use_hpu_graphs_for_inference: bool = option(
        DEVICE, switch, False, "hpu, lazy: replay graphs in the evaluation and prediction after training"
    )
    do_eval: bool = option(SAVING, switch, False, "evaluate after training")
    logging_steps: int = option(SAVING, count, 1, "optimizer steps between reports", "-l")
    save_steps: int | None = option(SAVING, count, None, "optimizer steps between checkpoints", "-st")
    resume_from_checkpoint: bool = option(SAVING, switch, False, "go on from the newest checkpoint in --output_dir")

    @property
    def results_dir(self):
        return os.path.join(self.output_dir, "results")

    @property
    def lock_name(self):
        return f".{self.task_name}.lock"  # tasks side by side share no file but the record

    @property
    def task_dir(self):
        return os.path.join(self.output_dir, self.task_name)

    @property
    def all_seeds(self):
        return range(self.seed, self.seed + self.seeds)


def problems(settings, world_size) -> list[str]:
    """What cannot run, without looking at any file."""
    found = []
    for name in ("validation_file", "test_file"):
        if getattr(settings, name) and not settings.train_file:
            found.append(f"--{name} needs --train_file: local data come together")
    if settings.train_file and settings.do_eval and not settings.validation_file:
        found.append("--do_eval needs --validation_file beside --train_file: local data come together")
    if settings.seed + settings.seeds > SEEDS:
        found.append(f"--seed {settings.seed} and --seeds {settings.seeds}: the last seed must be below 2**32")
    if settings.seeds > 1 and not settings.do_eval:
        found.append(f"--seeds {settings.seeds} compares scores: add --do_eval")
    return found


def notes(settings, world_size) -> list[str]:
    """The batch of all ranks."""
    if world_size == 1:
        return []
    return [f"{world_size} ranks x {settings.batch_size} = {world_size * settings.batch_size} examples a step"]


def script_words(settings, *, root, world_size, device, mode) -> list[tuple[str, list[str]]]:
    """(name, words) of each run: the script and its arguments; several where there are several seeds."""
    if settings.seeds == 1:
        return [(settings.task_name, _run_words(settings, root, device, mode, settings.seed, settings.task_dir))]
    return [
        (f"seed {seed}", _run_words(settings, root, device, mode, seed, f"{settings.task_dir}/seed_{seed}"))
        for seed in settings.all_seeds
    ]


def summary_words(settings, root) -> list[str] | None:
    """The script that sums up the runs of several seeds."""
    if settings.seeds == 1:
        return None
    return [
        os.path.join(root, SUMMARY_SCRIPT),
        "--output_dir",
        settings.task_dir,
        "--seeds",
        *map(str, settings.all_seeds),
    ]


def _run_words(settings, root, device, mode, seed, output_dir):
    is_qa = settings.task_name in QA_TASKS
    model = MODELS.get(settings.model_name_or_path)
    return [
        os.path.join(root, QA_SCRIPT if is_qa else GLUE_SCRIPT),
        *([] if is_qa else [f"--task_name={settings.task_name.upper()}"]),
        *_data_type_words(settings.data_type, root, device),
        *([f"--doc_stride={settings.doc_stride}"] if is_qa else []),
        *(["--version_2_with_negative"] if settings.task_name == "squad_v2" else []),
        *(["--use_lazy_mode"] if mode == "lazy" else []),
        *(["--torch_compile"] if mode == "compile" else []),
        f"--per_device_train_batch_size={settings.batch_size}",
        f"--per_device_eval_batch_size={settings.per_device_eval_batch_size}",
        *_data_words(settings),
        *["--use_fused_adam", "--use_fused_clip_norm"],  # of Gaudi; other devices have their own
        *(["--fused_sdpa"] if settings.fused_sdpa else []),
        *(["--use_hpu_graphs_for_inference"] if settings.use_hpu_graphs_for_inference else []),
        *{"hpu": ["--use_habana"], "cpu": ["--no_cuda"], "cuda": []}[device],
        *([f"--max_steps={settings.max_steps}"] if settings.max_steps else []),
        *([f"--cache_dir={settings.cache_dir}"] if settings.cache_dir else []),
        *([f"--save_steps={settings.save_steps}"] if settings.save_steps else []),
        f"--max_seq_length={settings.max_seq_length}",
        f"--learning_rate={settings.learning_rate}",
        f"--num_train_epochs={settings.num_train_epochs}",
        f"--output_dir={output_dir}",
        f"--logging_steps={settings.logging_steps}",
        f"--seed={seed}",
        *([f"--hang_timeout={settings.hang_timeout}"] if settings.hang_timeout is not None else []),
        *["--overwrite_output_dir", "--do_train"],
        *(["--resume_from_checkpoint=True"] if settings.resume_from_checkpoint else []),
        *(["--do_eval"] if settings.do_eval else []),
        *(["--do_predict"] if settings.test_file else []),
        f"--model_name_or_path={model.pretrained if model else settings.model_name_or_path}",
        *settings.script_args,
    ]


def _data_type_words(data_type, root, device):
    """bf16 has op lists on hpu, and is one word of Hugging Face's elsewhere."""
    if data_type == "fp32":
        return []
    bf16, fp32 = (os.path.join(root, name) for name in OP_LISTS)
    return ["--hmp", f"--hmp_bf16={bf16}", f"--hmp_fp32={fp32}"] if device == "hpu" else ["--bf16"]


def _data_words(settings):
    """Local files where given, else the named data set, else the task's own."""
    files = {name: getattr(settings, name) for name in ("train_file", "validation_file", "test_file")}
    words = [f"--{name}={path}" for name, path in files.items() if path]
    return words or [f"--dataset_name={settings.dataset_name or settings.task_name}"]
