"""What would stop a run, found before it starts: all of it at once, with remedies."""

import itertools
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
from types import SimpleNamespace

import h5py
import pytest
from launch_project import checkpoints, copy_project, left_running, run, wait_until, words

from central import models
from central.launch import child_environment, cli, hostcheck, machine, options, preflight, pretraining, remote
from central.launch.commands import Target
from central.launch.hosts import Layout
from central.launch.machine import Devices, MeetingPoint, Topology
from central.launch.mpi import Mpi
from central.launch.processes import Captured


@pytest.fixture
def project(tmp_path):
    return copy_project(tmp_path)


def answering(**answers):
    """A `capture` of canned answers: name of the program to (status, standard output)."""

    def capture(argv, **_how):
        status, stdout = answers.get(argv[0].replace("-", "_"), (127, ""))
        return Captured(status, stdout, "")

    return capture


def test_everything_at_once_and_nothing_is_started(project, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "torchrun's")
    shutil.rmtree(project.parent / "phase 2")
    (project.parent / "phase 1" / "corpus_training_0.hdf5").unlink()
    options = ["--train_batch_size", "15", "8", "--max_seq_length", "128", "1024", "--init_checkpoint", "/no/c", "None"]
    status, out, err, seconds = run(words(project, *options, "--device", "cuda"))
    problems = err.splitlines()
    assert status == 2 and out == "" and seconds < 10
    for expected in (
        "--train_batch_size 15 does not divide into 1 rank with --batch_size 2; nearest exact: 14 or 16",
        "no *training*.hdf5 in",
        "--data_dir, phase 2: no folder",
        "--max_seq_length 1024 is more than the positions in",
        "--init_checkpoint: no /no/c",
        "WORLD_SIZE=4: demo_bert.py starts its ranks itself",
        "--device cuda: torch sees no GPU",
    ):
        assert any(expected in problem for problem in problems), (expected, err)
    assert all(problem.startswith("error: ") for problem in problems)
    assert not (project.parent / "out put").exists()


def test_checkpoints_of_another_run_are_told_before_anything_changes(project):
    checkpoint = project.parent / "out put" / "results" / "checkpoints" / "ckpt_12"
    checkpoint.mkdir(parents=True)
    status, _, err, _ = run(words(project))
    assert status == 2 and "holds ckpt_12: give --resume_from_checkpoint" in err and "another --output_dir" in err
    assert list((project.parent / "out put" / "results").iterdir()) == [checkpoint.parent]
    assert run(words(project, "--resume_from_checkpoint"))[0] == 0


def test_a_second_phase_without_a_place_to_start_from_is_told_before_anything_starts(project):
    status, _, err, _ = run([*words(project)[:2], "check", *words(project, "--phase", "2")[2:]])
    assert status == 2 and err.count("error: ") == 1, err
    assert "checkpoints: no checkpoint for phase 2 to start from: run phase 1 first, or give --init_checkpoint" in err
    assert run(words(project, "--phase", "2"))[0] == 2 and not (project.parent / "out put").exists()
    weights = project.parent / "ckpt_3.pt"
    weights.touch()
    assert run(words(project, "--phase", "2", "--", f"--init_checkpoint={weights}"))[0] == 0
    shutil.rmtree(project.parent / "out put")
    assert run(words(project, "--phase", "2", "--init_checkpoint", str(weights)))[0] == 0
    checkpoint = checkpoints(project) / "ckpt_12"
    checkpoint.mkdir()
    assert run(words(project, "--phase", "2"))[0] == 0


@pytest.mark.parametrize("phase", [[], ["--phase", "1"]])
def test_rows_of_the_other_phase_are_told_before_the_first_one_begins(project, phase):
    request = words(project, *phase, "--data_dir", *[str(project.parent / "phase 2")] * (1 if phase else 2))
    status, _, err, _ = run(request)
    shard = project.parent / "phase 2" / "corpus_training_0.hdf5"
    assert status == 2 and err.splitlines()[-1] == (
        f"error: --data_dir, phase 1: {shard}: rows of 512 tokens are longer than --max_seq_length 128: raise it, or "
        "give the folder of the other phase"
    )
    assert not (project.parent / "out put").exists()


def test_a_model_without_a_vocabulary_is_told_before_fine_tuning_starts(tmp_path, capsys):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    request = f"finetuning --model_name_or_path {model} --data_type fp32 --device cpu --output_dir {tmp_path}".split()
    assert cli.main(["check", *request]) == 2
    (problem,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert problem.startswith(f"error: --model_name_or_path {model}: a model without a tokenizer (no tokenizer.json")
    assert "copy the model's vocab.txt into it, or name a tokenizer with --tokenizer_name" in problem
    assert cli.main(["check", *request, "--", "--tokenizer_name", "bert-base-uncased"]) == 0
    for name in ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model"):
        (model / name).touch()
        assert cli.main(["check", *request]) == 0, name
        (model / name).unlink()


def test_data_of_phase_2_are_looked_at_before_phase_1_begins(project):
    shard = project.parent / "phase 2" / "corpus_training_0.hdf5"
    status, _, err, _ = run(words(project, "--max_seq_length", "128", "256"))
    assert status == 2 and f"{shard}: rows of 512 tokens are longer than --max_seq_length 256" in err
    for content in (shard.read_bytes()[:900], b"", b"no HDF5 at all"):
        shard.write_bytes(content)
        status, _, err, _ = run(words(project))
        assert status == 2 and f"--data_dir, phase 2: {shard}: not a whole HDF5 file" in err
    with h5py.File(shard, "w") as file:
        file["other"] = [1]
    assert run(words(project))[0] == 2
    assert not (project.parent / "out put").exists()


def test_habanas_packed_folders_are_data(project):
    """Files without "training" in their names, beside what prepare.py does not make."""
    for phase in (1, 2):
        shard = project.parent / f"phase {phase}" / "corpus_training_0.hdf5"
        shard.rename(shard.with_name("mixed_strategies_part_0.hdf5"))
        (shard.parent / "README.txt").touch()
    status, _, err, _ = run(words(project))
    assert status == 0, err
    status, _, err, _ = run(words(project, "--max_seq_length", "128", "256", "--resume_from_checkpoint"))
    assert status == 2 and "mixed_strategies_part_0.hdf5: rows of 512 tokens are longer" in err


@pytest.mark.parametrize(
    "content",
    [
        '{"hidden_size": "128"}',
        '{"num_hidden_layers": 1' + "0" * 400 + "}",
        '{"num_hidden_layers": true}',
        '{"hidden_size": 0}',
        '{"max_position_embeddings": "x"}',
        "[1]",
        "x",
        "\udcff",
        "[" * 3000 + "]" * 3000,
    ],
)
def test_a_configuration_that_is_none(project, content):
    config = project.parent / "config.json"
    config.write_text(content, errors="surrogateescape")
    status, _, err, _ = run(words(project, "--config_file", str(config)))
    assert status == 2 and f"--config_file {config}: no " in err and "Traceback" not in err


def test_a_run_that_its_script_refuses_leaves_nothing(project):
    """What only the script can see: run.json, the lock and the folders were made for nothing."""
    script = project / "pretraining" / "run_pretraining.py"
    works = script.read_text()
    out = project.parent / "out put"
    refuses = "import os, sys; os.makedirs(sys.argv[-1]); sys.exit(2)"
    script.write_text(refuses)
    assert run([*words(project), str(out / "results" / "checkpoints")])[0] == 2
    assert not out.exists()
    script.write_text(works)
    assert run(words(project, "--phase", "1"))[0] == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name != ".lock"}
    script.write_text("import sys; sys.exit(2)")
    assert run(words(project, "--phase", "2"))[0] == 2
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name != ".lock"} == before


def test_a_record_of_a_run_that_did_something_before_it_was_refused_stays(project):
    script = project / "pretraining" / "run_pretraining.py"
    script.write_text("import sys; open(sys.argv[-1], 'w').close(); sys.exit(2)")
    assert run([*words(project), str(project.parent / "out put" / "results" / "dllogger.json")])[0] == 2
    assert (project.parent / "out put" / "results" / "run.json").exists()


@pytest.mark.parametrize("flag", ["--config_file", "--train_file", "--init_checkpoint"])
def test_what_might_never_end_is_not_read(project, tmp_path, capsys, flag):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, "/dev/zero"):
        if flag == "--train_file":
            argv = f"finetuning --model_name_or_path base --data_type fp32 --device cpu {flag} {path}".split()
        else:
            argv = [*words(project)[2:-7], flag, *[str(path)] * (2 if flag == "--init_checkpoint" else 1)]
        assert cli.main(["check", *argv]) == 2
        assert f"{flag} {path}: a device, pipe or socket" in capsys.readouterr().err


def test_a_file_with_a_token_for_other_hosts_is_its_owners_alone(tmp_path):
    token = tmp_path / "token"
    token.touch()
    several, environ = Layout(2, 1, ("a", "b"), by_ssh=True), {"HF_TOKEN_PATH": str(token)}
    for mode, problems in ((0o600, 0), (0o644, 1), (0o640, 1)):
        token.chmod(mode)
        assert len(preflight.token_file_problems(several, environ)) == problems
    assert preflight.token_file_problems(Layout(2, 2), environ) == []
    assert preflight.token_file_problems(several, {"HF_TOKEN_PATH": str(tmp_path / "none")}) == []


def test_a_port_of_sshd_that_is_none_is_told_once():
    target = target_of(Layout(2, 1, ("a", "b"), by_ssh=True), environ={"DOCKER_SSHD_PORT": "ssh"})
    assert remote.host_problems(target, None) == ["DOCKER_SSHD_PORT=ssh is no port; unset it for 3022"]


def test_a_folder_of_data_that_is_not_there_is_told_with_the_way_out(capsys, tmp_path):
    words = "finetuning --model_name_or_path base --data_type fp32 --device cpu --task_name squad".split()
    status = cli.main(["check", *words, "--max_seq_length=384", "--dataset_name=/root/bert/Squad/"])
    err = capsys.readouterr().err
    assert (
        status == 2 and "--dataset_name: no folder /root/bert/Squad/; --dataset_name squad takes the task's own" in err
    )
    assert cli.main(["check", *words, "--max_seq_length=384", f"--dataset_name={tmp_path}"]) == 0


def test_check_reports_and_starts_nothing(project):
    demo = [sys.executable, str(project / "demo_bert.py")]
    status, out, _, _ = run([*demo, "check"])
    assert status == 0
    for row in ("python", "torch", "mpirun", "cores", "hpu cards", "project"):
        assert any(line.startswith(row) for line in out.splitlines()), row
    request = words(project)[2:]
    status, out, err, _ = run([*demo, "check", *request])
    assert status == 0 and "phase 1: 16 sequences a step = 1 rank x 8 micro-steps x 2 sequences" in err
    status, _, err, _ = run([*demo, "check", *request[:-7], "--data_dir", "/no/1", "/no/2"])
    assert status == 2 and "no folder /no/1" in err
    assert not (project.parent / "out put").exists() and left_running(project) == []


@pytest.mark.parametrize("port", ["taken", "http", "tcp://10.0.0.1:80", "0"])
def test_a_port_of_the_caller_must_be_free_and_one(project, port):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        given = str(taken.getsockname()[1]) if port == "taken" else port
        status, _, err, _ = run(words(project, "--world_size", "2"), MASTER_PORT=given)
    complaint = "is in use" if port == "taken" else "is no port"
    assert status == 2 and f"error: MASTER_PORT={given} {complaint}; unset it" in err


def target_of(layout, environ=None, **changes):
    given = {
        **{"python": "/py", "root": "/project", "environ": environ or {}, "devices": Devices("cpu"), "layout": layout},
        **{"topology": Topology(1, 2), "mpirun": Mpi(5), "meeting_point": MeetingPoint()},
    }
    return Target(**{**given, **changes})


@pytest.mark.parametrize(
    ("version", "complaint"),
    [
        ("mpirun (Open MPI) 5.0.11", ""),
        ("mpirun (Open MPI) 4.1.4", "give --mpi openmpi4"),
        ("", "no mpirun of Open MPI"),
    ],
)
def test_the_mpirun_found_must_be_the_one_composed_for(version, complaint):
    def capture_all(argvs, **_how):
        return [Captured(0 if version else 127, version, "") for _ in argvs]

    found = preflight.mpirun_problems(Mpi(5), capture_all)
    assert bool(found) == bool(complaint) and all(complaint in problem for problem in found)


def test_an_mpirun_that_does_not_start_is_quoted():
    """Open MPI 5 without HOME: it is there, and its own line says what it lacks."""
    said = "[host:1] Error: Unable to get the user home directory\n---\nIt looks like opal_init failed\n"

    def capture_all(argvs, **_how):
        return [Captured(213, "", said) for _ in argvs]

    assert preflight.mpirun_problems(Mpi(5), capture_all) == [
        "mpirun --version fails: [host:1] Error: Unable to get the user home directory; export HOME"
    ]


@pytest.mark.parametrize("folder", ["/proc", "/no/such/folder", "/dev/null"])
def test_a_folder_for_temporary_files_that_cannot_be_used_is_named(folder):
    (problem,) = preflight.temporary_problems({"TMPDIR": folder})
    assert problem.startswith(f"TMPDIR={folder}: no folder can be made there (") and "unset it" in problem


def test_a_usable_folder_for_temporary_files_stays_empty(tmp_path):
    assert preflight.temporary_problems({"TMPDIR": str(tmp_path)}) == [] == preflight.temporary_problems({})
    assert not list(tmp_path.iterdir())


def test_more_ranks_than_cards():
    assert preflight.card_problems(Layout(8, 8), Devices("hpu", 4)) == [
        "8 ranks on this server, but 4 hpu cards; lower --world_size"
    ]
    assert preflight.card_problems(Layout(8, 8), Devices("cpu")) == []


def test_more_ranks_than_the_machine_can_hold():
    assert preflight.core_problems(Layout(8, 8), Topology(1, 2)) == []
    (problem,) = preflight.core_problems(Layout(64, 64), Topology(1, 2))
    assert problem.startswith("--world_size 64: this machine has 2 cores") and "lower --world_size" in problem


def test_a_full_disk(monkeypatch, tmp_path):
    assert preflight.disk_problems(str(tmp_path), {}) == []
    large = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24}
    large |= {"vocab_size": 30522, "max_position_embeddings": 512, "type_vocab_size": 2}
    assert 335e6 < models.parameter_count(large) < 337e6
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 10**9))
    (problem,) = preflight.disk_problems(str(tmp_path), large)
    assert "1.0 GB are free, two checkpoints take 8.1 GB" in problem
    (tmp_path / "ckpt_1").mkdir()
    (problem,) = preflight.disk_problems(str(tmp_path), large)
    assert "1.0 GB are free, another checkpoint takes 4.0 GB" in problem
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 12345678))
    assert "12.3 MB are free" in preflight.disk_problems(str(tmp_path), large)[0]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 5000))
    assert "5 kB are free" in preflight.disk_problems(str(tmp_path), large)[0]


def test_the_disk_is_asked_for_the_vocabulary_of_the_data(project, monkeypatch):
    """A named size takes its vocabulary from the data: 2,000 tokens are no 30,522."""
    asked = []
    monkeypatch.setattr(preflight, "disk_problems", lambda folder, config: asked.append(config["vocab_size"]) or [])
    parser = options.settings_parser(pretraining, "demo")
    settings = options.parse(pretraining, [*words(project)[3:-7], "--phase=1"], parser)
    target = target_of(Layout(1, 1), root=str(project))

    def no_answer(argvs, **_how):
        return [Captured(127, "", "") for _ in argvs]

    preflight.pretraining_problems(settings, target, no_answer)
    (project.parent / "phase 1" / "vocab.txt").write_text("token\n" * 2000)
    preflight.pretraining_problems(settings, target, no_answer)
    assert asked == [30522, 2000]


# Devices: counted, never acquired

CARDS = "index, module_id\n0, 0\n1, 1\n2, 2\n3, 3\n"


@pytest.mark.parametrize(
    ("wanted", "installed", "answers", "expected"),
    [
        ("auto", False, {}, "cpu"),
        ("auto", True, {"hl_smi": (0, CARDS)}, "hpu"),
        ("auto", False, {"hl_smi": (0, CARDS)}, "cpu"),
        ("auto", False, {"nvidia_smi": (0, "GPU 0: H200\n"), sys.executable: (0, "1\n")}, "cuda"),
        ("auto", False, {"nvidia_smi": (0, "GPU 0: H200\n"), sys.executable: (0, "0\n")}, "cpu"),
        ("cpu", True, {"hl_smi": (0, CARDS)}, "cpu"),
    ],
)
def test_the_device_that_is_taken(monkeypatch, wanted, installed, answers, expected):
    monkeypatch.setattr(machine, "_is_installed", lambda _: installed)
    answers = {name.replace("-", "_"): answer for name, answer in answers.items()}
    assert machine.choose(wanted, answering(**answers), {}).type == expected


@pytest.mark.parametrize(("visible", "cards"), [("", 4), ("0,1", 2), ("0,1,2,3,4,5", 4)])
def test_visible_modules_limit_the_cards(monkeypatch, visible, cards):
    monkeypatch.setattr(machine, "_is_installed", lambda _: True)
    assert machine.hpu_count(answering(hl_smi=(0, CARDS)), {"HABANA_VISIBLE_MODULES": visible}) == cards


MOVED = "index, module_id\n0, 6\n1, 4\n2, 7\n3, 5\n"


@pytest.mark.parametrize(
    ("answer", "environ", "handed_on"),
    [
        ((0, CARDS), {}, None),  # 0, 1, 2, 3: as the plugin counts itself
        ((0, MOVED), {}, "4,5,6,7"),
        ((0, "index, module_id\n0, 3\n"), {}, "3"),
        ((0, "index, module_id\n0, 1\n1, 0\n"), {}, None),
        ((0, MOVED), {"HABANA_VISIBLE_MODULES": "6,7"}, None),
        ((0, MOVED), {"HABANA_VISIBLE_MODULES": ""}, "4,5,6,7"),
        ((1, MOVED), {}, None),
    ],
)
def test_modules_that_are_not_counted_from_0_are_handed_to_the_ranks(monkeypatch, answer, environ, handed_on):
    monkeypatch.setattr(machine, "_is_installed", lambda _: True)
    devices = machine.choose("hpu", answering(hl_smi=answer), environ)
    told = {"root": "/r", "mode": "lazy", "op_lists": None, "threads": 1, "loopback": False}
    told["meeting_point"] = MeetingPoint("localhost", "1", False)
    found = child_environment.child_variables(environ=environ, devices=devices, **told)
    assert found.get("HABANA_VISIBLE_MODULES") == handed_on


@pytest.mark.parametrize(
    ("moved", "told"), [({}, None), ({"HPU_EMULATOR_MODULES": "6,5,7,4"}, "4,5,6,7")], ids=["from 0", "from 4"]
)
def test_a_rank_of_a_server_with_other_modules_is_told(project, root, moved, told):
    """The whole way, with the emulator's hl-smi: a container that was given cards 4 to 7."""
    emulator = root / "tests" / "hpu_emulator"
    path = f"{emulator / 'bin'}:{os.environ['PATH']}"
    server = {"PATH": path, "PYTHONPATH": str(emulator), "HPU_EMULATOR_CARDS": "4", **moved}
    status, _, err, _ = run(words(project, "--device", "hpu", "--phase", "1"), **server)
    assert status == 0, err
    assert ("the modules of this server are 4,5,6,7" in err) == bool(told)
    facts = json.loads((checkpoints(project) / "phase1_rank0.json").read_text())
    assert facts["environ"]["HABANA_VISIBLE_MODULES"] == told


@pytest.mark.parametrize(
    ("visible", "ranks", "said"),
    [
        ("0,1,2", 2, ["3 modules in HABANA_VISIBLE_MODULES: Habana supports 1, 2, 4 and 8"]),
        ("0,1,2,3,4,5", 6, ["6 modules in", "6 ranks on a server"]),
        ("0,1,2,3", 3, ["3 ranks on a server: Habana supports"]),
        ("3", 1, []),
        ("0,1,2,3,4,5,6,7", 8, []),
        ("", 2, ["the modules of this server are 4,5,6,7, which ranks are told in HABANA_VISIBLE_MODULES"]),
    ],
)
def test_numbers_of_cards_that_habana_does_not_support_are_said(visible, ranks, said):
    devices = Devices("hpu", 4, modules=(4, 5, 6, 7))
    found = list(child_environment.module_notes({"HABANA_VISIBLE_MODULES": visible}, devices, ranks))
    assert len(found) == len(said) and all(map(str.startswith, found, said)), found


@pytest.mark.parametrize(
    ("visible", "problem"),
    [
        ("4,5", None),
        ("4, 5", "HABANA_VISIBLE_MODULES=4, 5: expected different module ids between commas"),
        ("0,5", "HABANA_VISIBLE_MODULES=0,5: no module 0; hl-smi shows 4, 5, 6, 7"),
        ("4,4", "HABANA_VISIBLE_MODULES=4,4: expected different module ids"),
        ("4,", "HABANA_VISIBLE_MODULES=4,: expected"),
        ("all", "HABANA_VISIBLE_MODULES=all: expected"),
        ("\u0664", "HABANA_VISIBLE_MODULES=\u0664: expected"),
    ],
)
def test_modules_that_are_not_there_are_told_before_the_start(visible, problem):
    target = target_of(
        Layout(1, 1), {"HABANA_VISIBLE_MODULES": visible}, devices=Devices("hpu", 4, modules=(4, 5, 6, 7))
    )
    found = child_environment.module_problems(target.environ, target.devices)
    assert [text[: len(problem)] for text in found] == [problem] if problem else found == []
    assert child_environment.module_problems(target.environ, Devices("cpu")) == []


def test_an_absent_device_says_what_was_found(monkeypatch):
    monkeypatch.setattr(machine, "_is_installed", lambda _: False)
    found = machine.choose("hpu", answering(), {})
    assert found.missing.startswith("--device hpu: habana_frameworks is not installed; found 0 cuda cards")


# Other hosts

HERE = {"host": "hosta", "python": "3.11.7", "torch": "2.13.0", "project": "abc"}


@pytest.mark.parametrize(
    ("status", "stdout", "stderr", "expected"),
    [
        (0, json.dumps(HERE), "", []),
        (0, "Welcome!\n" + json.dumps(HERE), "", []),
        (0, json.dumps({**HERE, "torch": "2.9"}), "", ["torch is 2.9 there, 2.13.0 here; make them the same"]),
        (
            0,
            json.dumps({**HERE, "port_in_use": "12345"}),
            "",
            ["port 12345 is in use there, where the ranks are to meet; set MASTER_PORT to a free one"],
        ),
        (127, "", "bash: /py: No such file", ["no /py there; install the same python at the same path"]),
        (2, "", "can't open file", ["no project at /project there; put the same copy at the same path"]),
        (
            255,
            "",
            "x\nHost key verification failed.",
            ["its key is unknown: ssh-keyscan -p 3022 hostb >> ~/.ssh/known_hosts"],
        ),
        (124, "", "no answer in time", None),
        (0, "no JSON", "", None),
    ],
)
def test_what_an_answer_of_a_host_means(status, stdout, stderr, expected):
    found = remote.faults(
        "hostb", Captured(status, stdout, stderr), HERE, "3022", target_of(Layout(2, 1, ("a", "b"), "x", True))
    )
    assert found == expected if expected is not None else len(found) == 1


def test_the_first_host_is_asked_for_the_port_where_the_ranks_meet():
    with socket.create_server(("", 0)) as taken:
        port = str(taken.getsockname()[1])
        target = target_of(Layout(2, 1, ("a", "b"), "x", True), meeting_point=machine.MeetingPoint("localhost", port))
        first, second = (remote.question(host, "22", target)[-1] for host in ("a", "b"))
        assert first == f"{second} {port}"
        words = [sys.executable, remote.hostcheck.__file__, port]
        there = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    assert there["port_in_use"] == port and not remote.hostcheck.is_in_use(port)


def test_a_host_that_misses_three_knocks_is_lost(monkeypatch):
    """This machine is not watched, nor is a host that did not answer the first; one that answers again is forgiven."""
    knocks = {
        "a": iter([True, False, False, True, False, False, False]),
        "b": iter([False]),
        "c": itertools.repeat(True),
    }
    waits = []
    monkeypatch.setattr(remote, "answers", lambda host, port: next(knocks[host]))
    monkeypatch.setattr(remote, "time", SimpleNamespace(sleep=waits.append))
    monkeypatch.setattr(remote.meeting, "is_this_machine", lambda host: host == "here")
    watch = remote.HostWatch(["here", "a", "b", "c"], "22")
    wait_until(lambda: watch.lost)
    assert watch.lost == "a" and waits == [10, 1, 1, 10, 1, 1]


def test_a_host_answers_where_something_listens():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert remote.answers("127.0.0.1", port)
    assert not remote.answers("127.0.0.1", port)


def test_what_hosts_are_compared_by(monkeypatch, tmp_path):
    found = hostcheck.facts()
    assert found["host"] == socket.gethostname() and found["python"] == platform.python_version()
    assert found["torch"] == hostcheck.version("torch") and hostcheck.version("no-such-thing") == "not installed"
    monkeypatch.setattr(hostcheck, "ROOT", str(tmp_path))
    (tmp_path / "central" / "a folder.py").mkdir(parents=True)
    (tmp_path / "a folder.py").mkdir()
    seen = {hostcheck.fingerprint()}
    for name, content in (("demo.py", "1"), ("demo.py", "2"), ("other.py", "2"), ("central/a folder.py/a.json", "2")):
        (tmp_path / name).write_text(content)
        seen.add(hostcheck.fingerprint())
    assert len(seen) == 5 and {len(print_) for print_ in seen} == {12}
    (tmp_path / "notes.md").write_text("of no concern")
    (tmp_path / "central" / "notes.md").write_text("of no concern")
    assert hostcheck.fingerprint() in seen


def test_hosts_with_one_name_are_told():
    same = Captured(0, json.dumps(HERE), "")
    (problem,) = remote.equal_names({"a": same, "b": same})
    assert problem.startswith("a and b both call themselves hosta: name each host once")


def test_this_machine_is_asked_without_ssh():
    def asked(argvs, timeout):
        assert not argvs, "no ssh"

    target = target_of(Layout(2, 2, ("localhost",), "--hostfile f", True))
    assert remote.host_problems(target, asked) == []


def test_other_hosts_do_not_find_this_one_as_localhost(monkeypatch):
    asked = []
    monkeypatch.setattr(remote.meeting, "is_this_machine", lambda host: host == "localhost")

    def answer(argvs, timeout):
        asked.extend(argvs)
        return [Captured(0, json.dumps({**remote.hostcheck.facts(), "host": "hostb"}), "") for _ in argvs]

    target = target_of(Layout(2, 1, ("localhost", "192.0.2.2"), "--hostfile f", True))
    (problem,) = remote.host_problems(target, answer)
    assert problem.startswith("host localhost: other hosts do not find this one under that name")
    assert len(asked) == 1 and "192.0.2.2" in asked[0]


# Pre-training from a model


def test_a_model_to_go_on_from_has_the_vocabulary_of_the_data(project, monkeypatch, capsys):
    model = project.parent / "a model"
    request = [*words(project)[2:], "--model_name_or_path", str(model)]
    request = [*request[: request.index("--")], "--model_name_or_path", str(model), "--dry_run"]

    def complaints():
        settings = options.parse(pretraining, request[1:], options.settings_parser(pretraining, "demo"))
        return preflight.pretraining_problems(settings, target_of(Layout(1, 1), root=str(project)), no_rows)

    def no_rows(argvs, timeout=0):
        return [Captured(1, "", "") for _ in argvs]

    assert complaints() == []
    model.mkdir()
    assert complaints()[0].startswith(f"--model_name_or_path {model}: no config.json in it")
    (model / "config.json").symlink_to("/no/such/place")
    assert complaints() == [
        f"--model_name_or_path {model / 'config.json'}: a link to /no/such/place, which is not there: mount what it "
        "lies on, or take the link away"
    ]
    (model / "config.json").unlink()
    (model / "config.json").write_text('{"vocab_size": 2}')
    (model / "optimizer.pt").symlink_to("/no/such/place")
    assert [problem.partition(": ")[0] for problem in complaints()] == [str(model / "optimizer.pt")]
    (model / "optimizer.pt").unlink()
    (model / "vocab.txt").write_text("[PAD]\na\n")
    assert complaints() == []
    for phase in (1, 2):
        (project.parent / f"phase {phase}" / "vocab.txt").write_text("[PAD]\nb\n")
    assert complaints()[0].endswith(f"prepare the data with --vocab_file {model / 'vocab.txt'}")


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("/no/model", "error: --model_name_or_path /no/model: no such folder\n"),
        ("tinny", "no folder here, nor to be had from the Hub ("),
    ],
)
def test_a_model_that_is_nowhere_is_told_once(project, monkeypatch, model, said):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    argv = words(project)
    argv[argv.index("tiny")] = model
    status, _, err, _ = run(argv)
    assert status == 2 and said in err and err.count("error:") == 1
    assert model != "tinny" or "did you mean tiny?" in err


# What check tells


def test_check_tells_of_commit_processor_memory_and_gpus(tmp_path):
    (tmp_path / "cpuinfo").write_text("model name\t: A CPU\nflags\t\t: sse avx512_bf16 amx_bf16\n")
    assert machine.processor(str(tmp_path / "cpuinfo")) == "A CPU; bf16 instructions: avx512_bf16, amx_bf16"
    (tmp_path / "cpuinfo").write_text("model name\t: A CPU\nflags\t\t: sse\n")
    assert machine.processor(str(tmp_path / "cpuinfo")).endswith("none, fp32 is as fast")
    assert machine.processor(str(tmp_path / "nothing")) == "not known"
    (tmp_path / "meminfo").write_text("MemTotal: 4194304 kB\nMemAvailable:   1048576 kB\n")
    assert machine.memory(str(tmp_path / "meminfo")) == "4.0 GiB, of which 1.0 are free"
    listed = "GPU 0: NVIDIA H200 (UUID: GPU-1)\nGPU 1: NVIDIA H200 (UUID: GPU-2)\n"
    assert machine.gpu_names(lambda argv: Captured(0, listed, "")) == ["NVIDIA H200"] * 2
    assert machine.commit(lambda argv: Captured(128, "", "no repository")).startswith("not known")


def test_check_tells_of_port_mpirun_and_hosts(monkeypatch):
    def row(name, environ=None):
        lines = cli.report(environ or {}, answering(mpirun=(0, "mpirun (Open MPI) 5.0.11\nReport bugs\n")))
        return next(line.removeprefix(name).strip() for line in lines if line.startswith(name))

    assert row("mpirun ") == "mpirun (Open MPI) 5.0.11"
    assert row("MULTI_HLS_IPS", {"MULTI_HLS_IPS": "a, b"}) == "a b" and row("MULTI_HLS_IPS") == "not set"
    for free, said in ((True, "free"), (False, "in use: a run takes another free one")):
        monkeypatch.setattr(machine, "port_is_free", lambda port, free=free: free)
        assert row("port 12345") == said


def test_an_output_folder_below_a_file_is_told_what_it_is(tmp_path):
    """No change of permissions would help."""
    (tmp_path / "f").touch()
    for folder in (tmp_path / "f", tmp_path / "f" / "below"):
        (problem,) = preflight.output_problems(str(folder))
        assert problem == f"--output_dir {folder}: {tmp_path / 'f'} is no folder: name another place"
    assert preflight.output_problems(str(tmp_path / "new")) == []
