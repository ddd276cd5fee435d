"""Exit statuses and ranks: what a script says when it ends, and how it knows which process it is."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors import SafetensorError

from central.runtime import exits, rank

ROOT = Path(__file__).resolve().parents[1]


def raising(error):
    def main(argv):
        raise error

    return main


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for names in rank.VARIABLES.values():
        for name in names:
            monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (exits.BadRequest("no such file: a.txt"), 2),
        (exits.Diverged("step 7"), 3),
        (exits.Preempted("saved at step 9"), 85),
        (RuntimeError("ours"), 1),
        (SystemExit(2), 2),
        (SystemExit(None), 0),
        (KeyboardInterrupt(), 130),
    ],
)
def test_every_error_has_its_status(error, status):
    assert exits.run(raising(error), []) == status


def test_all_problems_are_printed_each_on_its_line(capsys):
    assert exits.run(raising(exits.BadRequest(["first", "second"])), []) == 2
    assert capsys.readouterr().err == "error: first\nerror: second\n"


PEER_IS_GONE = "[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:10677. GLHF!"


def test_that_a_peer_is_gone_is_one_line(capsys):
    """It has said itself why: a traceback of each of the others would bury that."""
    assert exits.run(raising(RuntimeError(f"{PEER_IS_GONE}\nmore")), []) == 1
    assert capsys.readouterr().err == f"lost the connection to another rank, which says why: {PEER_IS_GONE}\n"


def test_a_failing_rank_names_itself_last():
    script = (
        "import sys; from central.runtime import exits\n"
        "def main(argv): raise exits.BadRequest('shard 3 is empty')\n"
        "sys.exit(exits.run(main, []))"
    )
    environ = os.environ | {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=environ, capture_output=True, text=True)
    assert done.returncode == 2
    first, last = done.stderr.splitlines()
    assert first == "error: shard 3 is empty"
    assert last.startswith("rank 1 on ") and last.endswith(": exit status 2")


@pytest.mark.parametrize(
    ("number", "error", "order"),
    [
        (0, exits.BadRequest("no data"), ["spoken", 2]),
        (1, exits.BadRequest("no data"), ["waited", "spoken", 2]),
        (1, exits.Diverged("step 7"), ["spoken", 3]),
        (0, RuntimeError(PEER_IS_GONE), ["waited", "spoken", 1]),
    ],
)
def test_of_what_all_ranks_find_the_first_speaks_first(monkeypatch, capsys, number, error, order):
    """What only one rank can tell waits for nobody."""
    found = []

    def leave(status):
        found.extend([*["spoken"] * bool(capsys.readouterr().err), status])
        raise InterruptedError

    monkeypatch.setattr(exits.time, "sleep", lambda _: found.append("waited") or capsys.readouterr())
    monkeypatch.setattr(exits.os, "_exit", leave)
    for name, value in {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(InterruptedError):
        exits.run(raising(error), [])
    assert found == order


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, rank.Rank()),
        ({"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}, rank.Rank(3, 1, 4, 4, "torchrun")),
        (
            {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"},
            rank.Rank(3, 1, 4, 2, "torchrun"),
        ),
        (
            {
                "OMPI_COMM_WORLD_RANK": "5",
                "OMPI_COMM_WORLD_LOCAL_RANK": "1",
                "OMPI_COMM_WORLD_SIZE": "8",
                "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
            },
            rank.Rank(5, 1, 8, 4, "openmpi"),
        ),
        ({"SLURM_PROCID": "1", "SLURM_LOCALID": "0", "SLURM_NTASKS": "2"}, rank.Rank(1, 0, 2, 2, "slurm")),
        (
            {"SLURM_PROCID": "8", "SLURM_LOCALID": "1", "SLURM_NTASKS": "10", "SLURM_NODEID": "2"}
            | {"SLURM_STEP_TASKS_PER_NODE": "4,3(x2)"},
            rank.Rank(8, 1, 10, 3, "slurm"),
        ),
        # By number of nodes in a batch system that tells of the job alone; of a node that it does not count.
        (
            {"SLURM_PROCID": "2", "SLURM_LOCALID": "0", "SLURM_NTASKS": "4", "SLURM_NODEID": "1"}
            | {"SLURM_TASKS_PER_NODE": "2,1(x2)", "SLURM_NTASKS_PER_NODE": "2"},
            rank.Rank(2, 0, 4, 1, "slurm"),
        ),
        *(
            (
                {"SLURM_PROCID": "2", "SLURM_LOCALID": "0", "SLURM_NTASKS": "4", "SLURM_NODEID": node}
                | {"SLURM_TASKS_PER_NODE": "2(x2)", "SLURM_NTASKS_PER_NODE": "3"},
                rank.Rank(2, 0, 4, 3, "slurm"),
            )
            for node in ("2", "x")
        ),
        ({"RANK": "", "LOCAL_RANK": "", "WORLD_SIZE": ""}, rank.Rank(0, 0, 1, 1, "torchrun")),
        # A step of one in a job of two, and the shell of `salloc -n2`.
        (
            {"SLURM_JOB_ID": "9", "SLURM_STEP_ID": "0", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
            | {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS_PER_NODE": "2"}
            | {"SLURM_STEP_TASKS_PER_NODE": "1"},
            rank.Rank(0, 0, 1, 1, "slurm"),
        ),
        # torchrun by srun; a task of a step that is a world of its own.
        (
            {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x"}
            | {"SLURM_PROCID": "1", "SLURM_LOCALID": "0", "SLURM_STEP_NUM_TASKS": "2"},
            rank.Rank(3, 1, 4, 2, "torchrun"),
        ),
        # A Kubernetes job of one pod, which knows nothing of local ranks, and an mpirun in it.
        ({"RANK": "0", "WORLD_SIZE": "1"}, rank.Rank()),
        (
            {"RANK": "0", "WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
            | {"OMPI_COMM_WORLD_SIZE": "2"},
            rank.Rank(1, 1, 2, 2, "openmpi"),
        ),
        # Our launcher has spoken: what Kubeflow, SLURM or another mpirun left does not count.
        ({"BERT_LAUNCHER": "alone", "BERT_WORLD_SIZE": "1", "RANK": "1", "WORLD_SIZE": "2"}, rank.Rank()),
        (
            {"BERT_LAUNCHER": "mpirun", "BERT_WORLD_SIZE": "2", "BERT_LOCAL_WORLD_SIZE": "2"}
            | {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
            | {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
            | {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"},
            rank.Rank(1, 1, 2, 2, "openmpi"),
        ),
        # A batch script is one process, whatever the job's task count says.
        ({"SLURM_JOB_ID": "9", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "2"}, rank.Rank()),
    ],
)
def test_rank_from_each_launcher(environ, expected):
    assert rank.from_environment(environ) == expected


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({"RANK": "0"}, "without LOCAL_RANK, WORLD_SIZE"),
        ({"RANK": "4", "LOCAL_RANK": "0", "WORLD_SIZE": "4"}, "do not fit"),
        ({"RANK": "x", "LOCAL_RANK": "0", "WORLD_SIZE": "4"}, "not a count"),
        (
            {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
            | {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"},
            "RANK=0, WORLD_SIZE=1 contradict OMPI_COMM_WORLD_RANK=1, OMPI_COMM_WORLD_SIZE=2",
        ),
        (
            {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
            | {"SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "2"},
            "contradict SLURM_PROCID=1, SLURM_STEP_NUM_TASKS=2",
        ),
        # A rank whose world is not the launcher's: no mpirun reached it, or ranks went to other hosts than asked.
        ({"BERT_LAUNCHER": "mpirun", "BERT_WORLD_SIZE": "2"}, "mpirun started 1 ranks in all .* asked for 2"),
        (
            {"BERT_LAUNCHER": "mpirun", "BERT_WORLD_SIZE": "2", "BERT_LOCAL_WORLD_SIZE": "1"}
            | {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
            | {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"},
            "mpirun started 2 ranks on this host and the launcher asked for 1",
        ),
    ],
)
def test_impossible_ranks_are_refused(environ, says):
    with pytest.raises(ValueError, match=says):
        rank.from_environment(environ)


def test_export_keeps_what_is_set_and_leaves_one_rank_alone():
    environ = {"MASTER_PORT": "29500"}
    rank.export(rank.Rank(1, 1, 2, 2, "openmpi"), environ)
    assert environ == {
        "RANK": "1",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "29500",
    }
    alone = {}
    rank.export(rank.Rank(), alone)
    assert alone == {}


@pytest.mark.parametrize(
    ("address", "kept"), [("127.0.0.1", True), ("192.0.2.77", False), ("no-such-host.invalid", False)]
)
def test_export_of_leftovers(address, kept):
    """A rank that mpirun placed beside all others on this server, in the environment of another job."""
    environ = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": address}
    rank.export(rank.Rank(1, 1, 2, 2, "openmpi"), environ)
    assert (environ["RANK"], environ["WORLD_SIZE"]) == ("1", "2")
    assert environ["MASTER_ADDR"] == (address if kept else "localhost")


@pytest.mark.parametrize(
    ("nodes", "host"),
    [("node[07-09,12],other", "node07"), ("a,b", "a"), ("gaudi3", "gaudi3"), ("n[1,4]", "n1"), ("", "localhost")],
)
def test_first_slurm_host(nodes, host):
    assert rank.first_slurm_host({"SLURM_JOB_NODELIST": nodes}) == host


@pytest.mark.parametrize(
    ("environ", "run_id"),
    [
        ({"BERT_RUN_ID": "a", "TORCHELASTIC_RUN_ID": "b"}, "a"),
        ({"TORCHELASTIC_RUN_ID": "b", "OMPI_COMM_WORLD_RANK": "0", "PMIX_NAMESPACE": "n"}, "b"),
        ({"OMPI_COMM_WORLD_RANK": "0", "PMIX_NAMESPACE": "n", "SLURM_JOB_ID": "9"}, "n"),
        ({"OMPI_COMM_WORLD_RANK": "0", "SLURM_JOB_ID": "9"}, ""),
        ({"SLURM_JOB_ID": "9", "SLURM_STEP_ID": "0"}, "9.0"),
        ({}, ""),
    ],
)
def test_whose_run_a_rank_is_of(environ, run_id):
    assert rank.run_id(environ) == run_id


@pytest.mark.parametrize(
    ("source", "environ", "address"),
    [
        ("slurm", {"SLURM_JOB_NODELIST": "n[4-5]"}, "n4"),
        ("slurm", {"SLURM_JOB_NODELIST": "n[4-5]", "MASTER_ADDR": "n5"}, "n5"),
        ("openmpi", {"SLURM_JOB_NODELIST": "n[4-5]"}, "localhost"),
    ],
)
def test_ranks_of_several_nodes_meet_on_the_first(source, environ, address):
    rank.export(rank.Rank(3, 1, 4, 2, source), environ)
    assert environ["MASTER_ADDR"] == address


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_both_signals_ask_to_stop(number):
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR1)]
    try:
        stop = rank.StopRequest()
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested
    finally:
        for n, handler in zip((signal.SIGTERM, signal.SIGUSR1), before):
            signal.signal(n, handler)


def test_a_rank_ends_with_its_launcher_and_a_script_by_hand_does_not(tmp_path):
    child = (
        "import sys, time; from central.runtime import rank\n"
        "rank.watch_parent(); open(sys.argv[1], 'w').write(str(__import__('os').getpid())); time.sleep(60)"
    )
    # A parent that starts the child, waits until it is up and dies without telling it.
    parent = (
        "import subprocess, sys, pathlib, time\n"
        "subprocess.Popen([sys.executable, '-c', sys.argv[1], sys.argv[2]])\n"
        "while not pathlib.Path(sys.argv[2]).exists(): time.sleep(0.05)\n"
        "time.sleep(0.3)"
    )

    def child_after_parent_died(launched: bool, name: str) -> int:
        environ = {k: v for k, v in os.environ.items() if k != "BERT_LAUNCHER"} | {"PYTHONPATH": str(ROOT)}
        environ |= {"BERT_LAUNCHER": "1"} if launched else {}
        pid_file = tmp_path / name
        subprocess.run([sys.executable, "-c", parent, child, str(pid_file)], env=environ, check=True)
        return int(pid_file.read_text())

    def alive(pid: int) -> bool:
        stat = Path(f"/proc/{pid}/stat")
        return stat.exists() and stat.read_text().split()[2] != "Z"

    by_hand = child_after_parent_died(False, "hand")
    launched = child_after_parent_died(True, "launched")
    deadline = time.monotonic() + 10
    while alive(launched) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(launched)
    assert alive(by_hand)
    os.kill(by_hand, signal.SIGKILL)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MemoryError(), "error: out of memory: take smaller batches"),
        (ImportError("libtorch.so: failed to map segment from shared object"), "error: libtorch.so: failed to map"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"), "error: DefaultCPU"),
        (OSError(27, "File too large", "out/weights"), "error: out/weights: larger than a file may be"),
        (OSError(28, "No space left on device"), "error: the disk is full"),
        (SafetensorError("Error while serializing: I/O error: File too large (os error 27)"), "error: larger than a"),
        (RuntimeError("Unable to write (errno = 28, error message = 'No space')"), "error: the disk is full"),
        (RuntimeError("basic_ios::clear: iostream error"), "error: the disk is full"),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 9 vs 8"), "error: the disk is full"),
    ],
)  # fmt: skip
def test_what_the_machine_refuses_is_one_line(capsys, error, line):
    assert exits.run(raising(error), []) == 2
    err = capsys.readouterr().err
    assert err.startswith(line) and err.count("\n") == 1


@pytest.mark.parametrize(
    "script", ["pretraining/run_pretraining.py", *map(str, (ROOT / "transformers").rglob("run_*.py"))]
)
@pytest.mark.parametrize("kilobytes", [150_000, 400_000])  # Python tells of it; torch's loader aborts
def test_too_little_memory_to_import_torch_is_one_line(script, kilobytes):
    command = f"ulimit -v {kilobytes}; exec {sys.executable} {ROOT / script} --do_train"
    environ = os.environ | {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}
    done = subprocess.run(["bash", "-c", command], env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    first, last = done.stderr.splitlines()
    assert first.startswith("error: ") and "out of memory" in first
    assert last.endswith(": exit status 2")
