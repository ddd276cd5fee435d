"""Ranks of one server meet on loopback: nothing of them listens to the network."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from central import meeting
from central.runtime import process_group
from central.runtime import rank as ranks

ROOT = Path(__file__).resolve().parents[1]

# Two ranks that have met; each prints the addresses (hexadecimal, as the kernel writes them) on which it listens.
PROGRAM = """
import os, re, sys
sys.path.insert(0, sys.argv[1])
import torch, torch.distributed as dist
from central.runtime import rank as ranks
from central.runtime.device import open_device
from central.runtime.process_group import init_process_group
rank = ranks.from_environment()
init_process_group(open_device("cpu", "eager", "fp32", rank), rank)
total = torch.ones(1)
dist.all_reduce(total)
mine = set()
for fd in os.listdir("/proc/self/fd"):
    try:
        mine.add(os.readlink(f"/proc/self/fd/{fd}"))
    except OSError:  # that of the listing itself
        continue
for table in ("tcp", "tcp6"):
    for line in open(f"/proc/self/net/{table}").read().splitlines()[1:]:
        words = line.split()
        if words[3] == "0A" and f"socket:[{words[9]}]" in mine:
            print("listens", words[1].partition(":")[0])
print("total", int(total))
dist.barrier()
"""


def start(rank, port, **environ):
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environ = {**os.environ, **{name: str(value) for name, value in names.items()}, **environ}
    return subprocess.Popen([sys.executable, "-c", PROGRAM, str(ROOT)], env=environ, **pipes)


@pytest.fixture
def port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_two_ranks_listen_on_loopback_only(port):
    ranks = [start(rank, port) for rank in (0, 1)]
    said = [rank.communicate(timeout=120) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said
    addresses = {line.split()[1] for out, _ in said for line in out.splitlines() if line.startswith("listens")}
    assert all("total 2" in out for out, _ in said)
    assert addresses == {"0100007F"}  # 127.0.0.1


def test_a_port_that_the_launcher_holds_is_taken_over_by_rank_0(port):
    with meeting.listen(port) as held:
        meeting.hand_over(held, "a run of the tests")
        with pytest.raises(OSError):
            meeting.listen(port)  # nobody takes it in between
        both = [start(rank, port, BERT_RUN_ID="a run of the tests") for rank in (1, 0)]
        said = [rank.communicate(timeout=120) for rank in both]
    assert [rank.returncode for rank in both] == [0, 0], said
    assert all("total 2" in out for out, _ in said)


def test_a_rank_of_another_run_is_refused_and_harms_nobody(port):
    stranger = start(1, port, BERT_RUN_ID="two")
    first = start(0, port, BERT_RUN_ID="one")
    _, err = stranger.communicate(timeout=120)
    assert stranger.returncode == 1
    assert f"ranks of another run (one) meet at 127.0.0.1:{port}; this is run two" in err
    second = start(1, port, BERT_RUN_ID="one")
    said = [rank.communicate(timeout=120) for rank in (first, second)]
    assert all("total 2" in out for out, _ in said), said


def test_by_hand_two_mpiruns_at_one_port_do_not_mix(port, monkeypatch):
    """The id is mpirun's own there: what both versions tell their ranks."""
    told = {"OMPI_COMM_WORLD_RANK": "0", "PMIX_NAMESPACE": "7"}
    assert ranks.run_id(told) == "7"
    assert ranks.run_id({"SLURM_JOB_ID": "4", "SLURM_STEP_ID": "1"}) == "4.1"
    assert ranks.run_id({**told, "BERT_RUN_ID": "mine"}) == "mine"
    first = start(0, port, **told)
    stranger = start(1, port, **{**told, "OMPI_COMM_WORLD_RANK": "1", "PMIX_NAMESPACE": "8"})
    _, err = stranger.communicate(timeout=120)
    first.kill()
    first.communicate()
    assert stranger.returncode == 1 and "ranks of another run (7)" in err


def test_a_port_that_is_taken_is_named(port):
    with socket.create_server(("127.0.0.1", port)):
        rank = start(0, port)
        _, err = rank.communicate(timeout=120)
    assert rank.returncode == 1 and f"ranks cannot meet at localhost:{port}" in err and "set MASTER_PORT" in err


@pytest.mark.parametrize(
    ("others", "interface"),
    [((), "eth0"), (("hosta", "hostb"), "ib0"), (("hosta",), "eth0")],
    ids=["by hand", "by the launcher", "alone"],
)
def test_the_network_of_the_other_hosts_is_taken_where_a_host_has_several(monkeypatch, others, interface):
    """On hosta, which calls itself 127.0.1.1: hostb is reached by ib0, all else by eth0; docker0 is first in order."""
    own = {"127.0.0.1": "lo", "10.0.0.1": "eth0", "192.0.2.1": "ib0", "172.17.0.1": "docker0"}
    routes = {"hosta": "127.0.0.1", "hostb": "192.0.2.1", process_group.ANY_OTHER_HOST: "10.0.0.1"}
    monkeypatch.setattr(process_group, "_own_addresses", lambda: own)
    monkeypatch.setattr(process_group, "_source_address", lambda name: routes.get(name, ""))
    assert process_group.network_interface("hosta", *others) == interface
    assert process_group.network_interface("hostb", *others) == "ib0"
    assert process_group.network_interface("localhost", *others) == "lo"
