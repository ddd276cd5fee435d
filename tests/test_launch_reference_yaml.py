"""The 15 YAML files of Habana's release 1.1.1 compose what its own runner composed.

golden/reference_yaml.json holds keys and values of each file, and of eight the words that runner gave to demo_bert.py.
"""

import json
import os
import re
from pathlib import Path

import pytest

from central import habana_model_runner
from central.errors import BadRequest
from central.launch import cli, run_record

FILES = json.loads((Path(__file__).parent / "golden" / "reference_yaml.json").read_text())
DRY = ["--dry_run", "--mpi", "openmpi4", "--node_topology", "2x28"]
RUNNER = ["--framework", "pytorch", "--model", "bert", "--hb_config"]
# Words that demo_bert.py of that release refuses, and the right ones.
REFUSED = {
    "--all_reduce_post_accumulation": "--allreduce_post_accumulation",
    "--all_reduce_post_accumulation_fp16": "--allreduce_post_accumulation_fp16",
}


def as_yaml(value, indent=0):
    """The file as its authors wrote it: block style, numbers bare, an empty value for nothing."""
    pad = "  " * indent
    if isinstance(value, dict):
        lines = []
        for key, inner in value.items():
            nested = isinstance(inner, dict | list) and inner
            lines.append(f"{pad}{key}:" + ("" if nested or inner is None else f" {inner}"))
            lines += as_yaml(inner, indent + 1) if nested else []
        return lines
    return [f'{pad}- "{item}"' if isinstance(item, str) else f"{pad}- {item}" for item in value]


@pytest.fixture
def composed(tmp_path, capsys):
    def compose(content, *flags):
        path = tmp_path / "config.yaml"
        path.write_text("\n".join(as_yaml(content)) + "\n")
        status = habana_model_runner.main([*RUNNER, str(path), *flags, *DRY])
        out, err = capsys.readouterr()
        return status, out.splitlines(), err.splitlines()

    return compose


def right(words):
    words = [REFUSED.get(word, word) for word in words]
    return ["--dataset_name" if word == "--data_dir" and words[0] == "finetuning" else word for word in words]


@pytest.mark.parametrize("name", [name for name, file in FILES.items() if file["words"]])
def test_what_the_reference_composed(composed, capsys, name):
    status, lines, said = composed(FILES[name]["content"])
    assert status == 0, said
    assert cli.main([*right(FILES[name]["words"]), *DRY]) == 0
    assert lines == capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("name", FILES)
def test_every_file_composes_its_own_numbers(composed, name):
    """By hand from each file: command, model, mode, data type, ranks, and the numbers of its task and data type."""
    content = FILES[name]["content"]
    status, lines, said = composed(content)
    assert status == 0, said
    given = content["parameters"]
    task = given["dataset_parameters"][given["task_name"]]
    batch = task["data_type_parameters"][given["data_type"]]["batch_size"]
    pretrains = given["command"] == "pretraining"
    assert len(lines) == (2 if pretrains else 1)
    for phase, line in enumerate(lines):
        assert ("--hmp " in line) == (given["data_type"] == "bf16")
        assert ("--torch_compile" in line) == (given.get("mode") == "graph")
        assert ("mpirun -n 8 " in line) == (given.get("world_size") == 8)
        if pretrains:
            steps = int(re.search(r"--gradient_accumulation_steps=(\d+)", line)[1])
            assert int(re.search(r"--train_batch_size=(\d+)", line)[1]) == steps * batch[phase]
            assert f"--input_dir={task['data_dir'].split(',')[phase]} " in line
            assert " --allreduce_post_accumulation --allreduce_post_accumulation_fp16 " in line
        else:
            assert f"--per_device_train_batch_size={batch} " in line and " --do_eval" in line
            assert f"--max_seq_length={task['max_seq_length']} " in line
            assert f"--learning_rate={float(task['learning_rate'])} " in line
            assert f"--num_train_epochs={given['num_train_epochs']} " in line
            assert f"--dataset_name={task['data_dir']} " in line


def test_words_that_its_own_launcher_refused_are_said(composed):
    _, _, said = composed(FILES["bert_large_pretrain_fp32_wiki_graph.yaml"]["content"])
    assert "--device hpu" in said[0]
    assert any(
        "all_reduce_post_accumulation of pretraining is allreduce_post_accumulation here" in line for line in said
    ), said
    _, _, said = composed(FILES["bert_base_default.yaml"]["content"])
    assert any("data_dir of finetuning is dataset_name here" in line for line in said), said


def test_flags_behind_it_win_and_its_variables_count(composed):
    content = {**FILES["bert_base_default.yaml"]["content"], "env_variables": {"HABANA_LOGS": "/logs", "A": "010"}}
    status, lines, said = composed(content, "--batch_size", "3", "--dataset_name", "squad")
    assert status == 0, said
    assert "--per_device_train_batch_size=3 " in lines[0] and "--dataset_name=squad " in lines[0]
    assert "HABANA_LOGS=/logs " in lines[0] and " A=010 " in lines[0]


def changed(**changes):
    content = json.loads(json.dumps(FILES["bert_base_default.yaml"]["content"]))
    content["parameters"] |= changes
    return content


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (changed(task_name="rte"), "dataset_parameters has nothing for rte, only for mrpc, squad, bookswiki"),
        (
            changed(data_type="fp16"),
            "dataset_parameters/squad/data_type_parameters has nothing for fp16, only for bf16",
        ),
        (changed(lerning_rate="1e-5"), "unknown key lerning_rate; did you mean learning_rate?"),
        (changed(store_true=["do_evl"]), "unknown key do_evl; did you mean do_eval?"),
        (changed(store_true="do_eval"), "store_true must be a list"),
        (changed(dataset_parameters=[1]), "dataset_parameters must be a map"),
        (changed(output_dir={"a": "b"}), "output_dir holds a map, where a value is due"),
        (changed(command=None), "`command` must say"),
        ({**changed(), "model": "resnet"}, "model must be bert"),
        ({**changed(), "parametrs": 1}, "unknown key parametrs; did you mean parameters?"),
        ({"model": "bert", "parameters": "x"}, "parameters must be a map"),
        ({**changed(), "env_variables": {"A": {"b": "c"}}}, "env_variables must hold lines NAME: value"),
        ({"command": "finetuning", "script_args": ["a", {"b": "c"}]}, "script_args must be a list of words"),
        ({"command": "finetuning", "env_variables": {"A": ["b"]}}, "env_variables must hold lines NAME: value"),
        ({"command": ["finetuning"]}, "`command` must say"),
        ({"command": "pretraining", "data_dir": [["a"], "b"]}, "data_dir holds a list in a list"),
        (
            {"command": "pretraining", "seed": "1", "max-steps": "5", "max_steps": "6"},
            "the key max_steps is given twice",
        ),
        ({"command": "pretraining", "output_dir": "a\0b"}, "'--output_dir=a\\x00b' holds a NUL or half a character"),
        ({"command": "pretraining", "output_dir": "a\ud800b"}, "holds a NUL or half a character"),
        ({"command": "pretraining", "script_args": ["a\0b"]}, "'a\\x00b' holds a NUL"),
        ({"command": "pretraining", "script_args": [None]}, "script_args must be a list of words"),
        ({"command": "pretraining", "env_variables": {"A": "\0"}}, "holds a NUL"),
        ({"command": "pretraining", "env_variables": {"A=B": "1"}}, "env_variables: 'A=B' is no name of a variable"),
        ({"command": "pretraining", "env_variables": {"": "1"}}, "env_variables: '' is no name of a variable"),
    ],
)
def test_a_file_that_cannot_run_says_why(content, fault):
    with pytest.raises(BadRequest) as refused:
        run_record.read_request(content, "f.yaml")
    assert any(problem.startswith("f.yaml: ") and fault in problem for problem in refused.value.problems), refused.value


def test_a_file_of_something_else_is_told_in_a_few_lines():
    """Twenty thousand unknown keys, each compared with all that are known, took minutes."""
    with pytest.raises(BadRequest) as refused:
        run_record.read_request({"command": "pretraining", **{f"key{n}": n for n in range(20_000)}}, "f.yaml")
    assert len(refused.value.problems) == 20


def test_lists_of_aliases_are_not_written_out(tmp_path):
    """Nine times nine times ... a word: a line of the file each, more words than a memory holds."""
    lines = ["command: pretraining", "k0: &k0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"k{n}: &k{n} [{', '.join([f'*k{n - 1}'] * 9)}]" for n in range(1, 12)]
    with pytest.raises(BadRequest, match="unknown key k11"):
        run_record.read_request(loaded(tmp_path, "\n".join(lines)), "f.yaml")


def test_parameters_as_a_list_of_maps():
    content = changed()
    whole = run_record.read_request(content, "f")
    content["parameters"] = [{key: value} for key, value in content["parameters"].items()]
    assert run_record.read_request(content, "f") == whole
    content["parameters"].append({"mode": "lazy"})
    with pytest.raises(BadRequest, match="the key mode is given twice"):
        run_record.read_request(content, "f")


# What YAML does to values that are not its own


def loaded(tmp_path, text):
    (tmp_path / "f.yaml").write_text(text)
    return habana_model_runner.load(tmp_path / "f.yaml")


def test_numbers_are_read_by_the_option_and_not_by_yaml(tmp_path):
    found = loaded(tmp_path, "a: 010\nb: 3e-5\nc: 1_000\nd: 12:30\ne: 0x10\nf: 2020-01-01\ng: yes\nh:\ni: [1, null]\n")
    text = {"a": "010", "b": "3e-5", "c": "1_000", "d": "12:30", "e": "0x10", "f": "2020-01-01"}
    assert found == {**text, "g": True, "h": None, "i": ["1", None]}


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("seed: 1\nmode: eager\nseed: 2\n", "the key seed is given twice"),
        ("parameters:\n  seed: 1\n  seed: 2\n", "the key seed is given twice"),
        ('"seed": 1\nseed: 2\n', "the key seed is given twice"),
        ("a: " + "[" * 3000 + "]" * 3000, "nested too deeply"),
        ("a: " + "{b: " * 3000 + "}" * 3000, "nested too deeply"),
        ("seed: !!int x\n", "a tag in line 1"),
        ("a: 1\nseed: !!map 5\n", "a tag in line 2"),
        ("script_args: !!pairs [a: 1]\n", "a tag in line 1"),
        ("seed: !!python/name:os.system\n", "a tag in line 1"),
        ("? [a]\n: 1\n", "no YAML"),
        ("a: [\n", "no YAML"),
    ],
)
def test_files_that_are_refused_in_one_line(tmp_path, text, fault):
    with pytest.raises(BadRequest, match=fault) as refused:
        loaded(tmp_path, text)
    (problem,) = refused.value.problems
    assert "\n" not in problem and problem.startswith(f"--hb_config {tmp_path / 'f.yaml'}: ")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadRequest, match="pipe: a device, pipe or socket"):
        habana_model_runner.load(tmp_path / "pipe")
