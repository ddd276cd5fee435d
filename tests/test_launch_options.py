"""The surface of demo_bert.py: options, spellings, complaints, help, and settings files."""

import json
import subprocess
import sys

import pytest
from launch_project import run

from central.errors import BadRequest
from central.launch import cli, finetuning, options, pretraining, run_record
from central.options import options_of

PRETRAINING = "--model_name_or_path large --data_type bf16 --data_dir /a /b --accumulate_gradients".split()
FINETUNING = "--model_name_or_path base --data_type fp32".split()
DRY = ["--dry_run", "--device", "cpu", "--mpi", "openmpi4", "--node_topology", "2x28"]


def parse(subcommand, *words):
    return options.parse(subcommand, words, options.settings_parser(subcommand, "demo"))


def complaints(subcommand, *words):
    with pytest.raises(BadRequest) as caught:
        parse(subcommand, *words)
    return caught.value.problems


def dry_run(capsys, *words):
    """(status, lines on standard output, standard error) of a dry run in this process."""
    status = cli.main([*words, *DRY])
    out, err = capsys.readouterr()
    return status, out.splitlines(), err


# The reference's table: flag, short spelling, default.
PRETRAINING_TABLE = {
    "output_dir": ("-o", "/tmp"),
    "mode": (None, None),
    "cache_dir": (None, None),
    "dist": (None, False),
    "world_size": (None, 1),
    "no_mpirun": (None, False),
    "process_per_node": (None, 0),
    "data_dir": ("-p", (None, None)),
    "task_name": ("-t", "bookswiki"),
    "config_file": (None, None),
    "learning_rate": ("-r", (0.006, 0.004)),
    "max_seq_length": ("-s", (128, 512)),
    "batch_size": ("-b", (64, 8)),
    "save_steps": ("-st", (200, 200)),
    "max_steps": (None, (7038, 1563)),
    "warmup": ("-wp", (0.2843, 0.128)),
    "init_checkpoint": (None, (None, None)),
    "create_logfile": (None, False),
    "accumulate_gradients": (None, False),
    "allreduce_post_accumulation": (None, False),
    "allreduce_post_accumulation_fp16": (None, False),
    "phase": (None, None),
    "train_batch_size": (None, (65536, 32768)),
    "steps_this_run": (None, (-1, -1)),
    "seed": (None, 12439),
    "resume_step": (None, (None, None)),
    "resume_from_checkpoint": (None, False),
}
FINETUNING_TABLE = {
    "task_name": ("-t", "mrpc"),
    "learning_rate": ("-r", 2e-5),
    "max_seq_length": ("-s", 128),
    "batch_size": ("-b", 8),
    "per_device_eval_batch_size": ("-v", 8),
    "num_train_epochs": ("-e", 1),
    "logging_steps": ("-l", 1),
    "max_steps": (None, None),
    "do_eval": (None, False),
    "doc_stride": ("-ds", 128),
    "save_steps": ("-st", None),
    "seed": (None, 42),
}


@pytest.mark.parametrize(
    ("subcommand", "table"), [(pretraining, PRETRAINING_TABLE), (finetuning, FINETUNING_TABLE)], ids=["pre", "fine"]
)
def test_every_flag_of_the_reference_with_its_default(subcommand, table):
    known = options_of(subcommand.Settings)
    for name, (short, default) in table.items():
        assert known[name].default == default, name
        assert short is None or short in known[name].short, name


def test_both_spellings_and_equal_signs():
    underscores = parse(pretraining, *PRETRAINING, "--max_steps", "5", "6", "-st", "7", "8")
    hyphens = parse(
        pretraining, *(word.replace("_", "-") for word in PRETRAINING), "--max-steps", "5", "6", "-st", "7", "8"
    )
    assert vars(underscores) == vars(hyphens)
    assert parse(finetuning, *FINETUNING, "--max-steps=5").max_steps == 5


def test_a_value_with_a_hyphen_or_underscore_is_left_alone():
    assert parse(finetuning, *FINETUNING, "--train-file=/my-data/a_b.json").train_file == "/my-data/a_b.json"


def test_switches_can_be_taken_back():
    assert not parse(pretraining, *PRETRAINING, "--accumulate_gradients=false").accumulate_gradients


def test_words_behind_a_bare_double_hyphen_go_to_the_script(capsys):
    status = cli.main(["pretraining", *PRETRAINING, *DRY, "--phase", "1", "--", "--eval-steps", "5", "--", "x"])
    line = capsys.readouterr().out.splitlines()[0]
    assert status == 0 and line.endswith("--eval-steps 5 -- x")


def test_all_complaints_at_once_with_the_nearest_word():
    found = complaints(
        pretraining, "--modle", "lazy", "--data_type", "bf61", "--max_steps", "ten", "5", "--warmup", "1.5", "0.1"
    )
    assert "unknown flag --modle; did you mean --mode?" in found
    assert "--data_type bf61: expected one of fp32, bf16; did you mean bf16?" in found
    assert "--max_steps ten: expected a whole number from 1" in found
    assert "--warmup 1.5: expected a number from 0, below 1" in found
    assert "--model_name_or_path is required" in found


@pytest.mark.parametrize("word", ["nan", "inf", "-1", "0", "three"])
def test_a_learning_rate_is_a_positive_number(word):
    assert complaints(finetuning, *FINETUNING, f"--learning_rate={word}")


@pytest.mark.parametrize("flag", ["--output_dir", "--cache_dir", "--config_file", "--hostfile"])
@pytest.mark.parametrize("word", ["", "a\nb", "a\r"])
def test_a_path_is_something_in_one_line(flag, word):
    (problem,) = complaints(pretraining, *PRETRAINING, flag, word)
    assert problem.startswith(f"{flag} {word!r}: expected a path")


def test_a_model_and_the_folders_of_phases_are_something_in_one_line():
    assert "expected a name or a path" in complaints(finetuning, "--model_name_or_path", "", "--data_type=fp32")[0]
    assert "--data_dir '': expected a path" in complaints(pretraining, *PRETRAINING, "--data_dir", "/a", "")
    assert parse(pretraining, *PRETRAINING, "--output_dir", "/tmp/ä  ö \udcff").output_dir == "/tmp/ä  ö \udcff"


@pytest.mark.parametrize("subcommand", [pretraining, finetuning])
def test_seeds_are_what_numpy_takes(subcommand):
    words = PRETRAINING if subcommand is pretraining else ["--model_name_or_path=base", "--data_type=fp32"]
    assert parse(subcommand, *words, "--seed", str(2**32 - 1)).seed == 2**32 - 1
    for word in ("-1", str(2**32), "1.5"):
        assert "a whole number from 0, below 2**32" in complaints(subcommand, *words, f"--seed={word}")[0]


def test_the_last_of_several_seeds_is_one_too(capsys):
    words = "finetuning --model_name_or_path base --data_type fp32 --do_eval --dry_run --device cpu --seeds 3".split()
    assert cli.main([*words, "--seed", str(2**32 - 3)]) == 0
    assert cli.main([*words, "--seed", str(2**32 - 2)]) == 2
    assert "the last seed must be below 2**32" in capsys.readouterr().err


def test_a_flag_of_the_training_script_goes_after_a_bare_double_hyphen():
    behind = "is a flag of the training script: give it after --"
    for flag in (
        "--warmup_ratio",
        "--use_fused_adam",
        "--weight_decay",
        "--max_train_samples",
        "--version_2_with_negative",
    ):
        assert complaints(finetuning, *FINETUNING, flag, "0.1") == (f"{flag} {behind}",)
    found = complaints(pretraining, *PRETRAINING, "--eval_steps=5", "--vocab_file", "v", "--sead", "1")
    assert found == (f"--eval_steps {behind}", f"--vocab_file {behind}", "unknown flag --sead; did you mean --seed?")
    (problem,) = complaints(finetuning, *FINETUNING, "word")
    assert problem == "unexpected word 'word': words after -- go to the training script"


@pytest.mark.parametrize(
    ("subcommand", "given", "instead"),
    [
        (pretraining, "--num_train_epochs", "--max_steps, as pre-training counts steps"),
        (pretraining, "--per_device_train_batch_size", "--batch_size"),
        (finetuning, "--per_device_train_batch_size", "--batch_size"),
        (pretraining, "--num_steps_per_checkpoint", "--save_steps"),
        (pretraining, "--hb_config", "it to central/habana_model_runner.py"),
        (finetuning, "--lr", "--learning_rate"),
        (finetuning, "--nproc-per-node", "--world_size"),
    ],
)
def test_a_flag_of_another_trainer_is_told_what_it_is_here(subcommand, given, instead):
    words = PRETRAINING if subcommand is pretraining else FINETUNING
    flag = "--" + given[2:].replace("-", "_")
    assert complaints(subcommand, *words, given, "2") == (f"{flag}: give {instead}",)


def test_one_phase_takes_one_value_of_each_option():
    words = "--model_name_or_path tiny --data_type fp32 --max_steps 5 --data_dir /b --init_checkpoint m".split()
    first = parse(pretraining, *words, "--phase", "1")
    assert first.max_steps == (5, 1563) and first.init_checkpoint == ("m", None)
    second = parse(pretraining, *words, "--phase", "2")
    assert second.max_steps == (7038, 5) and second.init_checkpoint == (None, "m")
    assert first.data_dir == second.data_dir == parse(pretraining, *words[:4], "-p", "/b").data_dir == ("/b", "/b")
    assert "expected 2 values, one for each phase, and got 1" in complaints(pretraining, *words)[0]


def test_the_help_of_pretraining_offers_what_it_trains(capsys):
    assert cli.main(["pretraining", "-h"]) == 0
    assert "roberta" not in capsys.readouterr().out.lower()
    words = [word.replace("large", "roberta-base") for word in PRETRAINING]
    status, out, err = dry_run(capsys, "pretraining", *words)
    assert status == 2 and "pre-training trains BERT, not RoBERTa; choose from base, large, tiny" in err


def test_abbreviations_are_no_flags():
    assert complaints(pretraining, *PRETRAINING, "--batch", "64", "8")[0].startswith("unknown flag --batch")


def test_too_few_and_too_many_values():
    words = "--max_steps 5 --mdoe lazy --warmup 0 0 0".split()
    assert complaints(pretraining, *PRETRAINING, *words) == (
        "unknown flag --mdoe; did you mean --mode?",
        "--max_steps: expected 2 values, one for each phase, and got 1",
        "--warmup: expected 2 values, one for each phase, and got 3",
    )
    assert "expected one argument" in complaints(pretraining, *PRETRAINING, "--seed")[0]


def test_the_beginning_of_a_flag_is_taken_for_that_flag():
    assert "unknown flag --model; did you mean --model_name_or_path?" in complaints(finetuning, "--model", "base")


def test_an_unknown_subcommand(capsys):
    assert cli.main(["finetune"]) == 2
    assert "did you mean finetuning?" in capsys.readouterr().err


def test_a_request_does_not_change():
    with pytest.raises(AttributeError):
        parse(finetuning, *FINETUNING).seed = 5


@pytest.mark.parametrize("subcommand", [pretraining, finetuning], ids=["pre", "fine"])
def test_help_says_everything_within_the_width_of_a_terminal(capsys, subcommand):
    name = subcommand.__name__.split(".")[-1]
    assert cli.main([name, "-h"]) == 0
    text = capsys.readouterr().out
    for option in options_of(subcommand.Settings):
        assert f"--{option}" in text
    assert "example:" in text and max(map(len, text.splitlines())) <= 120
    assert {option.group for option in options_of(subcommand.Settings).values()} <= set(options.GROUPS)
    for heading in options.GROUPS:
        if any(option.group == heading for option in options_of(subcommand.Settings).values()):
            assert f"{heading}:" in text


def test_the_example_of_the_help_is_a_request(capsys):
    for subcommand in (pretraining, finetuning):
        words = subcommand.EXAMPLES.replace("\\\n", " ").split("demo_bert.py")[1].split()
        assert cli.main([*words, "--dry_run"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


@pytest.mark.parametrize(
    "words", [["-h"], ["pretraining", "-h"], ["pretraining", *PRETRAINING, *DRY]], ids=["overview", "help", "dry run"]
)
def test_nothing_heavy_is_imported(root, words):
    argv = [sys.executable, "-X", "importtime", str(root / "demo_bert.py"), *words]
    done = subprocess.run(argv, capture_output=True, text=True)
    loaded = {line.split("|")[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time")}
    heavy = {"torch", "numpy", "yaml", "h5py", "transformers", "subprocess", "asyncio", "typing", "json"}
    assert done.returncode == 0 and "central.launch.cli" in loaded and not heavy & loaded


def test_a_dry_run_touches_nothing(root, tmp_path):
    folder = tmp_path / "nothing here"
    words = [*PRETRAINING, "--output_dir", str(folder / "out"), "--create_logfile", *DRY]
    status, out, _, _ = run([sys.executable, str(root / "demo_bert.py"), "pretraining", *words])
    assert status == 0 and len(out.splitlines()) == 2
    assert not folder.exists() and list(tmp_path.iterdir()) == []


# Settings files

YAML = """
command: finetuning
model-name-or-path: base
data_type: fp32
task_name: squad
learning_rate: 3e-5
num_train_epochs: 2
do_eval: true
script_args: [--max_train_samples, 10]
"""


def runner(root, path, *flags):
    script = root / "central" / "habana_model_runner.py"
    argv = [sys.executable, str(script), "--framework", "pytorch", "--model", "bert", "--hb_config", str(path), *flags]
    return run(argv)


def test_a_yaml_file_runs_the_same_commands(root, tmp_path, capsys):
    pytest.importorskip("yaml")
    (tmp_path / "f.yaml").write_text(YAML)
    status, out, err, _ = runner(root, tmp_path / "f.yaml", "--batch_size", "12", "--num-train-epochs=1", *DRY)
    words = "--task_name squad --learning_rate 3e-5 --num_train_epochs 1 --do_eval --batch_size 12".split()
    cli.main(["finetuning", *FINETUNING, *words, *DRY, "--", "--max_train_samples", "10"])
    assert status == 0, err
    assert out.splitlines() == capsys.readouterr().out.splitlines()
    assert "--learning_rate=3e-05" in out and "--num_train_epochs=1 " in out


def test_unknown_keys_are_refused_with_the_nearest_name(root, tmp_path):
    pytest.importorskip("yaml")
    (tmp_path / "f.yaml").write_text(YAML + "lerning_rate: 1\nbatchsize: 3\n")
    status, out, err, _ = runner(root, tmp_path / "f.yaml", "--dry_run")
    assert status == 2 and out == ""
    assert "unknown key lerning_rate; did you mean learning_rate?" in err
    assert "unknown key batchsize; did you mean batch_size?" in err


@pytest.mark.parametrize(
    "content",
    [
        *("", "- a\n", "command: train\n", "a: [\n", "!!python/object/apply:os.getcwd []\n", "\udcff\n"),
        *(YAML.replace("[--max_train_samples, 10]", "--tf32"), YAML + "env_variables: [A=1]\n"),
    ],
)
def test_files_that_are_no_request(root, tmp_path, content):
    pytest.importorskip("yaml")
    (tmp_path / "f.yaml").write_text(content, errors="surrogateescape")
    status, _, err, _ = runner(root, tmp_path / "f.yaml", "--dry_run")
    assert status == 2 and err.startswith("error: ") and "Traceback" not in err


def test_every_ready_file_composes(root):
    pytest.importorskip("yaml")
    files = sorted((root / "hb_configs").glob("*.yaml"))
    assert len(files) >= 5
    for path in files:
        status, out, err, _ = runner(root, path, *DRY)
        assert status == 0 and out, (path, err)
        assert "a dry run looks for no card" not in err, f"{path} names no device"
        assert " --output_dir=/tmp/bert_" in out, path


def test_a_record_reads_as_the_request_it_came_from(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    words = [
        *PRETRAINING,
        "--learning_rate",
        "3e-5",
        "1e-4",
        "--init_checkpoint",
        "None",
        "x/ckpt_5.pt",
        "--node-topology=2x28",
    ]
    settings = parse(pretraining, *words, "--", "--eval_steps", "5")
    from central.launch.commands import Plan

    made = json.loads(
        json.dumps(run_record.run_record("pretraining", settings, Plan(()), {"MULTI_HLS_IPS": "a,b"}, "now"))
    )
    request = run_record.read_request(made, "run.json")
    again = parse(pretraining, *request.words, "--", *request.script_args)
    assert request.variables == {"MULTI_HLS_IPS": "a,b"}
    assert again.init_checkpoint == (None, str(tmp_path / "x/ckpt_5.pt"))
    assert vars(again) == {**vars(settings), "init_checkpoint": again.init_checkpoint}


def test_a_record_names_local_models_and_data_from_any_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for folder in ("out", "base", "mrpc"):
        (tmp_path / folder).mkdir()
    from central.launch.commands import Plan

    def recorded(model, data):
        settings = parse(finetuning, "--model_name_or_path", model, "--data_type", "fp32", "--dataset_name", data)
        made = run_record.run_record("finetuning", settings, Plan(()), {}, "now")
        return made["model_name_or_path"], made["dataset_name"]

    assert recorded("out", "out") == (str(tmp_path / "out"), str(tmp_path / "out"))
    assert recorded("base", "mrpc") == ("base", "mrpc")
    assert recorded("some/hub-id", "imdb") == ("some/hub-id", "imdb")


def test_a_record_keeps_0_finds_paths_from_anywhere_and_tells_no_secret(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vocab.txt").touch()
    (tmp_path / "mrpc").mkdir()
    from central.launch.commands import Command, Plan

    passed = ["--vocab_file=vocab.txt", "--eval_dir", "./mrpc", "--task", "mrpc", "--hub_token", "hf_SECRET"]
    passed += ["--token=hf_SECRET", "--tokenizer_name=t", "--use_auth_token"]
    settings = parse(pretraining, *PRETRAINING, "--seed", "0", "--", *passed)
    plan = Plan((Command(("python", "x.py", *passed), (), "one"),))
    made = json.loads(json.dumps(run_record.run_record("pretraining", settings, plan, {}, "now")))
    assert "SECRET" not in json.dumps(made)
    assert made["record"]["commands"] == [
        "python x.py --vocab_file=vocab.txt --eval_dir ./mrpc --task mrpc --tokenizer_name=t"
    ]
    request = run_record.read_request(made, "run.json")
    assert parse(pretraining, *request.words).seed == 0
    assert list(request.script_args) == [
        *(f"--vocab_file={tmp_path / 'vocab.txt'}", "--eval_dir", str(tmp_path / "mrpc")),
        *("--task", "mrpc", "--tokenizer_name=t"),
    ]


@pytest.mark.parametrize(("option", "value"), [("--seed", "-1"), ("--warmup", "1.0")])
def test_a_value_that_the_script_would_refuse_is_refused_before(option, value):
    with pytest.raises(BadRequest, match="a whole number from 0|a number from 0, below 1"):
        parse(pretraining, *PRETRAINING, option, *[value] * (2 if option == "--warmup" else 1))


def test_variables_of_a_file_count_where_neither_the_caller_nor_the_run_sets_them(root, tmp_path, monkeypatch):
    pytest.importorskip("yaml")
    variables = "env_variables: {MASTER_PORT: 5555, PT_HPU_LAZY_MODE: 1, ENABLE_CONSOLE: true, HABANA_LOGS: }\n"
    (tmp_path / "f.yaml").write_text(YAML + "mode: eager\n" + variables)
    status, out, err, _ = runner(root, tmp_path / "f.yaml", *DRY, "--device", "hpu")
    assert status == 0, err
    assert "MASTER_PORT=5555 " in out and "PT_HPU_LAZY_MODE=0 " in out and "PT_HPU_LAZY_MODE=1 is set" in err
    assert "ENABLE_CONSOLE=true " in out and "HABANA_LOGS" not in out
    monkeypatch.setenv("MASTER_PORT", "6666")
    assert "MASTER_PORT=6666 " in runner(root, tmp_path / "f.yaml", *DRY)[1]


def test_records_of_earlier_runs_are_kept(tmp_path):
    for number in range(3):
        run_record.write({"run": number}, str(tmp_path))
    kept = {path.name: json.loads(path.read_text())["run"] for path in tmp_path.iterdir()}
    assert kept == {"run.json": 2, "run.json.1": 0, "run.json.2": 1}
