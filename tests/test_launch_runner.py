"""Starting, stopping and failing, for real: alone, under mpirun of either version, and under torchrun."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from launch_project import checkpoints, copy_project, descendants, left_running, run, start, wait_until, words

from central.launch import options, pretraining, processes, supervise
from central.launch.commands import Command, Plan
from central.launch.mpi import parse_version
from central.launch.supervise import Listener


def mpirun_folders():
    """Folder of an mpirun of each version of Open MPI on this machine."""
    found = {}
    for folder in [
        *os.environ["PATH"].split(":"),
        str(Path(sys.executable).parent),
        "/usr/bin",
        "/usr/local/openmpi/bin",
    ]:
        program = shutil.which("mpirun", path=folder)
        if program:
            version = subprocess.run([program, "--version"], capture_output=True, text=True).stdout
            found.setdefault(parse_version(version), folder)
    return found


MPIRUN_FOLDERS = mpirun_folders()
STARTERS = ["openmpi4", "openmpi5", "torchrun", "alone"]
SEVERAL = STARTERS[:3]


@pytest.fixture
def project(tmp_path):
    return copy_project(tmp_path)


def started_by(starter, monkeypatch):
    """Options that start two ranks this way; one where it is alone."""
    if starter == "torchrun":
        pytest.importorskip("torch")
        return ["--world_size", "2", "--no_mpirun"]
    if starter == "alone":
        return []
    major = int(starter[-1])
    if major not in MPIRUN_FOLDERS:
        pytest.skip(f"no Open MPI {major} here")
    monkeypatch.setenv("PATH", f"{MPIRUN_FOLDERS[major]}:{os.environ['PATH']}")
    return ["--world_size", "2"]


def facts(project, phase, rank):
    return json.loads((checkpoints(project) / f"phase{phase}_rank{rank}.json").read_text())


@pytest.mark.mpi
@pytest.mark.parametrize("starter", STARTERS)
def test_both_phases_run_and_ranks_line_up(project, monkeypatch, starter):
    options = started_by(starter, monkeypatch)
    monkeypatch.delenv("OMP_NUM_THREADS")
    temporary = project.parent / "tmp"
    temporary.mkdir()
    before = dict(os.environ)
    status, out, err, _ = run(words(project, *options), TMPDIR=str(temporary))
    assert status == 0, err
    assert list(temporary.iterdir()) == []
    world_size = 2 if options else 1
    for phase in (1, 2):
        for rank in range(world_size):
            seen = facts(project, phase, rank)
            assert (seen["rank"], seen["local_rank"], seen["world_size"]) == (rank, rank, world_size)
            assert seen["environ"]["MASTER_ADDR"] == "localhost"
            assert seen["environ"]["PYTHONPATH"].split(":")[0] == str(project)
            assert int(seen["environ"]["OMP_NUM_THREADS"]) >= 1
            assert f"phase {phase}, rank {rank}: café 100 %" in out
        assert f"--train_batch_size={(16, 8)[phase - 1] // world_size}" in facts(project, phase, 0)["argv"]
    assert dict(os.environ) == before
    assert left_running(project) == []


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("starter", "act", "status"),
    [
        *[
            (starter, *end)
            for starter in SEVERAL[:2]
            for end in (("refuse", 2), ("diverge", 3), ("crash", 1), ("die", 137))
        ],
        *[("torchrun", *end) for end in (("refuse", 2), ("die", 137))],
    ],
)
def test_the_first_failing_rank_is_named_and_phase_2_does_not_start(project, monkeypatch, starter, act, status):
    options = started_by(starter, monkeypatch)
    found, _, err, seconds = run(words(project, *options, act=act, steps=400))
    assert found == status, err
    assert f"rank 1 on {os.uname().nodename}: exit status {status}" in err.splitlines()[-1] or starter == "torchrun"
    assert "phase 1: rank 1" in err.splitlines()[-1]
    assert seconds < 30
    assert not list(checkpoints(project).glob("phase2*"))
    assert left_running(project) == []


@pytest.mark.parametrize(("act", "status"), [("refuse", 2), ("diverge", 3), ("crash", 1), ("die", 137)])
def test_the_status_of_a_process_alone(project, act, status):
    found, _, err, _ = run(words(project, act=act, rank=0))
    assert found == status, err


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("starter", "number"), [*((starter, signal.SIGTERM) for starter in STARTERS), ("openmpi5", signal.SIGINT)]
)
def test_asked_to_stop_every_rank_saves(project, monkeypatch, starter, number):
    options = started_by(starter, monkeypatch)
    launcher = start(words(project, *options, steps=2000), project, 2 if options else 1)
    launcher.send_signal(number)
    _, err = launcher.communicate(timeout=30)
    assert launcher.returncode == 85, err
    assert "phase 1: stopped after saving" in err
    assert len(list(checkpoints(project).glob("saved_by_rank_*"))) == (2 if options else 1)
    assert left_running(project) == []


def test_a_suspended_process_asked_to_stop_goes_on_and_saves(project):
    launcher = start(words(project, steps=2000), project, 1)
    os.kill(facts(project, 1, 0)["pid"], signal.SIGSTOP)
    launcher.send_signal(signal.SIGTERM)
    _, err = launcher.communicate(timeout=30)
    assert launcher.returncode == 85, err


@pytest.mark.mpi
@pytest.mark.parametrize("starter", SEVERAL)
def test_an_mpirun_that_is_killed_alone_is_named(project, monkeypatch, starter):
    options = started_by(starter, monkeypatch)
    launcher = start(words(project, *options, steps=2000), project, 2)
    begin = time.monotonic()
    program = "torchrun" if starter == "torchrun" else "mpirun"
    leader = next(pid for pid in descendants(launcher.pid) if os.getsid(pid) == pid and program_of(pid) == program)
    os.kill(leader, signal.SIGKILL)
    _, err = launcher.communicate(timeout=60)
    assert launcher.returncode == 137, err
    assert f"{program} was killed by signal 9" in err
    assert time.monotonic() - begin < 30
    assert left_running(project) == []


def program_of(pid) -> str:
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    return "torchrun" if "torch.distributed.run" in words else "mpirun" if "-n" in words else ""


# What another job, a batch system or a notebook leaves behind: each of these once changed a run, or stopped it.
LEFT_OVER = {
    **{"RANK": "1", "LOCAL_RANK": "0", "WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "3", "MASTER_ADDR": "192.0.2.77"},
    **{"PET_NPROC_PER_NODE": "3", "PET_NNODES": "2", "MPLBACKEND": "module://no_notebook.backend"},
    **{"SLURM_JOB_ID": "7", "SLURM_JOBID": "7", "SLURM_NTASKS": "3", "SLURM_NPROCS": "3", "SLURM_TASKS_PER_NODE": "1"},
    **{"SLURM_NODELIST": "elsewhere", "SLURM_JOB_NODELIST": "elsewhere", "SLURM_NNODES": "1", "SLURM_PROCID": "0"},
    **{"PBS_JOBID": "7", "PBS_ENVIRONMENT": "PBS_BATCH", "PBS_NODEFILE": "/no/nodes"},
    **{"OMPI_MCA_rmaps_base_mapping_policy": "ppr:1:node", "PRTE_MCA_rmaps_default_mapping_policy": "ppr:1:node"},
}
KEPT = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "SLURM_JOB_ID")  # ours, by then


@pytest.mark.mpi
@pytest.mark.parametrize("starter", STARTERS)
def test_what_another_launcher_left_in_the_environment_does_not_count(project, monkeypatch, tmp_path, starter):
    options = started_by(starter, monkeypatch)
    hostfile = tmp_path / "hosts"
    hostfile.write_text("192.0.2.78 slots=4\n")
    hostfiles = dict.fromkeys(("OMPI_MCA_orte_default_hostfile", "PRTE_MCA_prte_default_hostfile"), str(hostfile))
    status, _, err, _ = run(words(project, *options, steps=1), **LEFT_OVER, **hostfiles)
    assert status == 0, err
    world_size = 2 if options else 1
    ranks = [facts(project, 1, rank) for rank in range(world_size)]
    assert [(seen["rank"], seen["world_size"]) for seen in ranks] == [(rank, world_size) for rank in range(world_size)]
    gone = {name for name in LEFT_OVER if name not in KEPT and "_MCA_" not in name}  # mpirun 4 sets its own of those
    assert not {name for seen in ranks for name in seen["names"]} & gone
    assert all(seen["environ"]["MASTER_ADDR"] == "localhost" for seen in ranks) or world_size == 1
    assert "WORLD_SIZE=3" in err and "set for another run" in err
    assert ("MASTER_ADDR=192.0.2.77 is set, but the ranks of this run meet on localhost" in err) == (world_size > 1)


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("starter", "number"),
    [
        *((starter, signal.SIGTERM) for starter in STARTERS),
        *((starter, signal.SIGINT) for starter in SEVERAL[1:]),
        *((starter, signal.SIGHUP) for starter in SEVERAL[:2]),
    ],
)
def test_asked_to_stop_all_at_once_every_rank_saves(project, monkeypatch, starter, number):
    """What systemd does, and SLURM at the end of a time limit: the launcher, mpirun and its ranks get the signal."""
    options = started_by(starter, monkeypatch)
    launcher = start(words(project, *options, steps=2000), project, 2 if options else 1)
    everyone = {launcher.pid, *descendants(launcher.pid)}
    assert len(everyone) >= (4 if options else 2)
    for pid in sorted(everyone, reverse=True):
        os.kill(pid, number)
    _, err = launcher.communicate(timeout=60)
    assert launcher.returncode == 85, err
    assert len(list(checkpoints(project).glob("saved_by_rank_*"))) == (2 if options else 1)
    assert left_running(project) == []


@pytest.mark.mpi
@pytest.mark.parametrize("starter", STARTERS)
def test_nothing_is_left_when_the_launcher_is_killed(project, monkeypatch, starter):
    options = started_by(starter, monkeypatch)
    launcher = start(words(project, *options, steps=2000), project, 2 if options else 1)
    launcher.kill()
    launcher.wait()
    wait_until(lambda: left_running(project) == [], seconds=30)
    assert len(list(checkpoints(project).glob("saved_by_rank_*"))) == (2 if options else 1)


@pytest.mark.slow
@pytest.mark.mpi
@pytest.mark.parametrize("starter", SEVERAL)
def test_ranks_that_hang_do_not_outlive_a_dead_one(project, monkeypatch, starter):
    """The other rank ignores every request, as one in a collective does."""
    options = started_by(starter, monkeypatch)
    launcher = start(words(project, *options, act="hang", steps=2000), project, 2)
    begin = time.monotonic()
    _, err = launcher.communicate(timeout=60)
    assert launcher.returncode == 137, err
    assert time.monotonic() - begin < 30
    assert left_running(project) == []


def test_a_second_signal_cuts_the_grace_short(project):
    launcher = start(words(project, act="hang", rank=5, steps=2000), project, 1)
    launcher.send_signal(signal.SIGTERM)
    wait_until(lambda: "stopping" in launcher.stderr.readline())
    launcher.send_signal(signal.SIGTERM)
    launcher.send_signal(signal.SIGTERM)
    launcher.communicate(timeout=30)
    assert launcher.returncode == 137
    assert left_running(project) == []


@pytest.mark.parametrize(
    ("words", "again"),
    [
        ([], ["--resume_from_checkpoint"]),
        (["--resume_step", "7", "None"], ["--resume_from_checkpoint"]),
        (
            ["--init_checkpoint", "m.pt", "None", "--resume_step", "7", "None"],
            ["--resume_from_checkpoint", "--init_checkpoint=m.pt", "--resume_step", "7"],
        ),
    ],
)
def test_a_restart_goes_on_from_the_newest_checkpoint(words, again):
    request = "--model_name_or_path tiny --data_type fp32 --accumulate_gradients -p a b".split()
    settings = options.parse(pretraining, ["--phase=1", *request, *words], options.settings_parser(pretraining, "demo"))
    (run,) = pretraining.runs(settings, root="/r", world_size=1, device="cpu", mode="eager")
    assert run.again[run.again.index("--steps_this_run=-1") + 1 :] == tuple(again)
    assert set(run.words) <= {*run.again, "--resume_step", "7"}


@pytest.mark.parametrize("restarts", [0, 1])
def test_a_failed_phase_is_restarted_from_its_checkpoint(project, restarts):
    status, _, err, _ = run(words(project, "--max_restarts", str(restarts), act="crash", rank=0, once=True))
    assert status == (0 if restarts else 1), err
    assert ("restart 1 of 1" in err) == bool(restarts)
    assert ("--resume_from_checkpoint" in facts(project, 1, 0)["argv"]) == bool(restarts)


@pytest.mark.parametrize("act", ["refuse", "diverge"])
def test_what_would_fail_again_is_not_restarted(project, act):
    _, _, err, _ = run(words(project, "--max_restarts", "3", act=act, rank=0))
    assert "restart" not in err


def test_a_log_file_gets_what_the_screen_gets(project):
    status, out, err, _ = run(words(project, "--create_logfile"))
    assert status == 0, err
    log = (checkpoints(project).parent / "train.log").read_text()
    assert log == out and "café" in log


def test_a_run_repeats_itself_from_its_record(project):
    pytest.importorskip("yaml")
    assert run(words(project, "--learning_rate", "3e-5", "1e-4"))[0] == 0
    first = facts(project, 2, 0)["argv"]
    record = project.parent / "record.json"
    shutil.move(checkpoints(project).parent / "run.json", record)
    shutil.rmtree(checkpoints(project).parent)
    runner = [sys.executable, str(project / "central" / "habana_model_runner.py"), "--framework", "pytorch"]
    status, _, err, _ = run([*runner, "--model", "bert", "--hb_config", str(record)])
    assert status == 0, err
    assert facts(project, 2, 0)["argv"] == first


def test_two_runs_do_not_write_into_one_folder(project):
    request = words(project, steps=400)
    process = start(request, project, ranks=1)
    status, _, err, _ = run(request)
    assert status == 2
    assert f"another run (process {process.pid} on {os.uname().nodename}) writes there" in err
    results = checkpoints(project).parent
    assert [path.name for path in results.glob("run.json*")] == ["run.json"]
    other = project.parent / "elsewhere"
    assert run(words(project, "--output_dir", str(other)))[0] == 0
    process.send_signal(signal.SIGKILL)
    process.communicate()
    wait_until(lambda: not left_running(project))
    assert run(words(project))[0] == 0  # the lock went with its holder


@pytest.mark.mpi
def test_two_runs_that_start_together_meet_at_ports_of_their_own(tmp_path, monkeypatch):
    """The ranks open the port some time after the launcher found it free. Each job has a TMPDIR of its own."""
    ports = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv("TMPDIR", str(tmp_path / name))
        project = copy_project(tmp_path / name)
        process = start(words(project, "--world_size", "2", steps=400), project, ranks=2)
        ports.append((facts(project, 1, 0)["environ"]["MASTER_PORT"], process))
    for _, process in ports:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert len({port for port, _ in ports}) == 2


@pytest.mark.parametrize(("status", "expected"), [(1, ["one", "two"]), (2, ["one"])])
def test_runs_of_other_seeds_go_on_after_a_failure_but_not_after_a_refusal(tmp_path, status, expected):
    program = "import pathlib, sys; pathlib.Path(sys.argv[1]).touch(); sys.exit(int(sys.argv[2]))"
    argv = [(sys.executable, "-c", program, str(tmp_path / name), str(status)) for name in ("one", "two")]
    last = Command((sys.executable, "-c", ""), (), "summary")
    plan = Plan(tuple(Command(words, (), "seed") for words in argv), summary=last)
    assert supervise.run(plan) == status
    assert sorted(path.name for path in tmp_path.iterdir()) == expected


def test_the_summary_of_several_seeds_is_told_which_failed(tmp_path):
    program = "import sys; sys.exit(int(sys.argv[1]))"
    summary = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text(' '.join(sys.argv[2:]))"
    commands = tuple(
        Command((sys.executable, "-c", program, str(code)), (), "any name", if_failed=(f"--failed={7 + code}",))
        for code in (0, 1, 3)
    )
    told = tmp_path / "told"
    last = Command((sys.executable, "-c", summary, str(told)), (), "summary")
    assert supervise.run(Plan(commands, summary=last)) == 1
    assert told.read_text() == "--failed=8 --failed=10"
    assert supervise.run(Plan(commands[:1], summary=last)) == 0
    assert told.read_text() == ""


@pytest.mark.parametrize(
    ("program", "status", "said"),
    [
        ("sys.exit(4)", 4, "one: exit status 4"),
        ("os.kill(os.getpid(), 9)", 137, "one: exit status 137 (the training was killed by signal 9)"),
        ("sys.stderr.write('x' * 10**6 + '\\nrank 3 on hosta: exit status 4\\n'); sys.exit(1)", 4,
         "one: rank 3 on hosta: exit status 4"),
        ("sys.exit(85)", 85, "one: stopped after saving"),
    ],
)  # fmt: skip
def test_the_last_line_says_how_a_command_ended(capfd, program, status, said):
    argv = (sys.executable, "-c", f"import os, sys; {program}")
    assert supervise.run(Plan((Command(argv, (), "one"),))) == status
    assert capfd.readouterr().err.splitlines()[-1] == f"demo_bert: {said}"


def test_a_run_whose_host_is_gone_is_ended(capfd, monkeypatch):
    monkeypatch.setattr(processes, "LAST_SECONDS", 0.2)
    begin = time.monotonic()
    plan = Plan((Command((sys.executable, "-c", "import time; time.sleep(30)"), (), "one"),))
    assert supervise.run(plan, max_restarts=1, lost_host=lambda: "hostb") == 1
    assert time.monotonic() - begin < 10
    assert capfd.readouterr().err == "demo_bert: one: host hostb does not answer any more\n"


@pytest.mark.parametrize("ends_itself", [True, False])
def test_what_a_command_leaves_behind_has_time_and_is_killed_then(capfd, tmp_path, monkeypatch, ends_itself):
    """Its session holds a process that ends after it was found there, or never."""
    look = processes._gone

    def look_and_let_go(*words):
        gone = look(*words)
        (tmp_path / ("go" if ends_itself else "stay")).touch()
        return gone

    monkeypatch.setattr(processes, "_gone", look_and_let_go)
    monkeypatch.setattr(processes, "LAST_SECONDS", 0)
    monkeypatch.setattr(supervise, "STRAGGLERS", 30 if ends_itself else 0)
    left = "(while [ ! -e go ]; do sleep 0.1; done; touch over) &"
    argv = ("sh", "-c", f"cd {tmp_path}; echo $$ > session; {left}")
    assert supervise.run(Plan((Command(argv, (), "one"),))) == 1
    assert capfd.readouterr().err == "demo_bert: one: ended as if done, but its ranks still ran\n"
    wait_until(lambda: not processes.members(int((tmp_path / "session").read_text())))
    assert (tmp_path / "over").exists() == ends_itself


def test_a_log_that_lacks_something_is_told(capfd, tmp_path):
    plan = Plan((Command((sys.executable, "-c", "print('a line')"), (), "one"),))
    lacking = "demo_bert: /dev/full: not all of the output could be written there\n"
    for path, said in ((str(tmp_path / "log"), ""), ("/dev/full", lacking)):
        assert supervise.run(plan, log_path=path) == 0
        assert capfd.readouterr().err == said
    assert (tmp_path / "log").read_text() == "a line\n"


def test_ranks_that_save_may_take_their_time(monkeypatch):
    """A second SIGTERM is a call to hurry 15 s after it, where no rank has said that it saves; a Ctrl-C at once."""
    stop, listener = SimpleNamespace(hurries=0, repeated_at=None), Listener()
    assert supervise._hurries(stop, listener) == 0
    stop.repeated_at = time.monotonic()
    assert supervise._hurries(stop, listener) == 0
    stop.repeated_at -= 16
    assert supervise._hurries(stop, listener) == 1
    listener.feed(b"\xff\nrank 0 on hosta: asked to stop, and saves soon\n")
    assert supervise._hurries(stop, listener) == 0
    stop.hurries = 1
    assert supervise._hurries(stop, listener) == 1


def test_a_program_that_gives_no_answer_in_time_is_ended():
    begin = time.monotonic()
    assert processes.capture(["sleep", "30"], timeout=0.2) == processes.Captured(124, "", "no answer in time")
    assert time.monotonic() - begin < 10
    assert processes.capture(["no-such-program"]).status == 127
    assert processes.capture(["sh", "-c", "echo $A; echo b >&2; exit 3"], env={"A": "a"}) == (
        processes.Captured(3, "a\n", "b\n")
    )
