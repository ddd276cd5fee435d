"""`demo_bert.py finetuning`: its options, and the words it gives to run_glue.py and run_qa.py."""

import dataclasses
import os
from collections.abc import Callable, Sequence

from central.files import ROOT
from central.launch.options import BATCHES, DATA, DEVICE, MODEL, SAVING, SCHEDULE, Common, Run
from central.models import MODELS
from central.options import (
    BATCH_SIZE,
    EVAL_BATCH_SIZE,
    INFERENCE_GRAPHS,
    LEARNING_RATE,
    MAX_SEQ_LENGTH,
    RESUME,
    SAVE_STEPS,
    SEED,
    SEEDS,
    choice,
    count,
    epochs,
    handed_on,
    option,
    path,
    path_or,
    switch,
)

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Common):
    """Settings of a fine-tuning run."""

    model_name_or_path: str = option(path_or(*MODELS), f"{', '.join(MODELS)}; a folder; a Hub id", group=MODEL)
    task_name: str = option(choice(*TASKS), "decides script, metric and labels", "mrpc", "-t", group=DATA)
    dataset_name: str | None = option(
        path_or("glue", *TASKS), "data set of the Hub, or a folder; unset: the task's own", None, group=DATA
    )
    train_file: str | None = option(path, "local training data; wins over --dataset_name", None, group=DATA)
    validation_file: str | None = option(path, "local data to evaluate on", None, group=DATA)
    test_file: str | None = option(path, "local data to predict on", None, group=DATA)
    max_seq_length: int = option(*MAX_SEQ_LENGTH, 128, "-s", group=DATA, hand_on="max_seq_length")
    doc_stride: int = option(count, "tokens two windows of a long paragraph share (SQuAD)", 128, "-ds", group=DATA)
    batch_size: int = option(*BATCH_SIZE, 8, "-b", group=BATCHES, hand_on="per_device_train_batch_size")
    per_device_eval_batch_size: int = option(
        *EVAL_BATCH_SIZE, 8, "-v", group=BATCHES, hand_on="per_device_eval_batch_size"
    )
    learning_rate: float = option(*LEARNING_RATE, 2e-5, "-r", group=SCHEDULE, hand_on="learning_rate")
    num_train_epochs: float = option(
        epochs, "passes over the training data", 1, "-e", group=SCHEDULE, hand_on="num_train_epochs"
    )
    max_steps: int | None = option(
        count, "optimizer steps, in place of --num_train_epochs", None, group=SCHEDULE, hand_on="max_steps"
    )
    seed: int = option(SEED[0], "seed of the new layer, data order and dropout", 42, group=SCHEDULE)
    seeds: int = option(count, "runs with the seeds from --seed on, and a summary of their scores", 1, group=SCHEDULE)
    use_hpu_graphs_for_inference: bool = option(
        *INFERENCE_GRAPHS, False, group=DEVICE, hand_on="use_hpu_graphs_for_inference"
    )
    do_eval: bool = option(switch, "evaluate after training", False, group=SAVING, hand_on="do_eval")
    logging_steps: int = option(
        count, "optimizer steps between reports", 1, "-l", group=SAVING, hand_on="logging_steps"
    )
    save_steps: int | None = option(*SAVE_STEPS, None, "-st", group=SAVING, hand_on="save_steps")
    resume_from_checkpoint: bool = option(*RESUME, False, group=SAVING)

    @property
    def lock_name(self) -> str:
        return f".{self.task_name}.lock"  # tasks side by side share no file but the record

    @property
    def task_dir(self) -> str:
        return os.path.join(self.output_dir, self.task_name)

    @property
    def all_seeds(self) -> range:
        return range(self.seed, self.seed + self.seeds)


def sources_of_flags() -> list[str]:
    """The files that say which flags the training scripts take: ours, and the installed transformers'."""
    import importlib.util

    spec = importlib.util.find_spec("transformers")  # the package, of which our folder of that name is no part
    installed = [os.path.join(os.path.dirname(spec.origin), "training_args.py")] if spec and spec.origin else []
    ours = [
        os.path.join(where, name)
        for folder in ("central/finetuning", "transformers/examples")
        for where, _, names in os.walk(os.path.join(ROOT, folder))
        for name in names
        if name.endswith(".py")
    ]
    return [*ours, *installed]


def located(settings: Settings, fetch: Callable[[str, Sequence[str]], str]) -> Settings:
    """As it is: the scripts find models and data sets by themselves."""
    return settings


def problems(settings: Settings, world_size: int) -> list[str]:
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


def notes(settings: Settings, world_size: int) -> list[str]:
    """The batch of all ranks."""
    if world_size == 1:
        return []
    return [f"{world_size} ranks x {settings.batch_size} = {world_size * settings.batch_size} examples a step"]


def runs(settings: Settings, *, root: str, world_size: int, device: str, mode: str) -> list[Run]:
    """Each run of the script, with its arguments; several where there are several seeds."""

    def words(seed: int, folder: str) -> tuple[str, ...]:
        return tuple(_run_words(settings, root, device, mode, seed, folder))

    if settings.seeds == 1:
        return [Run(settings.task_name, words(settings.seed, settings.task_dir))]
    return [
        # An earlier request may have left scores in the folder of a seed that failed.
        Run(f"seed {seed}", words(seed, f"{settings.task_dir}/seed_{seed}"), if_failed=(f"--failed={seed}",))
        for seed in settings.all_seeds
    ]


def summary_words(settings: Settings, root: str) -> list[str] | None:
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


def _run_words(settings: Settings, root: str, device: str, mode: str, seed: int, output_dir: str) -> list[str]:
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
        *handed_on(settings),
        *_data_words(settings),
        *["--use_fused_adam", "--use_fused_clip_norm"],  # of Gaudi; other devices have their own
        *{"hpu": ["--use_habana"], "cpu": ["--no_cuda"], "cuda": []}[device],
        *([f"--cache_dir={settings.cache_dir}"] if settings.cache_dir else []),
        f"--output_dir={output_dir}",
        f"--seed={seed}",
        *["--overwrite_output_dir", "--do_train"],
        *(["--resume_from_checkpoint=True"] if settings.resume_from_checkpoint else []),
        *(["--do_predict"] if settings.test_file else []),
        f"--model_name_or_path={model.pretrained if model else settings.model_name_or_path}",
        *settings.script_args,
    ]


def _data_type_words(data_type: str, root: str, device: str) -> list[str]:
    """bf16 has op lists on hpu, and is one word of Hugging Face's elsewhere."""
    if data_type == "fp32":
        return []
    bf16, fp32 = (os.path.join(root, name) for name in OP_LISTS)
    return ["--hmp", f"--hmp_bf16={bf16}", f"--hmp_fp32={fp32}"] if device == "hpu" else ["--bf16"]


def _data_words(settings: Settings) -> list[str]:
    """Local files where given, else the named data set, else the task's own."""
    files = {name: getattr(settings, name) for name in ("train_file", "validation_file", "test_file")}
    words = [f"--{name}={path}" for name, path in files.items() if path]
    return words or [f"--dataset_name={settings.dataset_name or settings.task_name}"]
