"""Two hosts for real: mpirun over ssh between two network namespaces, and what the user sees when a host fails."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from launch_hosts import SSH_PORT, TwoHosts, ip, why_not
from launch_project import checkpoints, copy_project, left_running, run, start, wait_until, words
from test_launch_runner import MPIRUN_FOLDERS

pytestmark = [pytest.mark.hosts, pytest.mark.mpi, pytest.mark.skipif(bool(why_not()), reason=why_not() or "-")]
TWO = ["--world_size", "4", "--process_per_node", "2"]
VERSIONS = [pytest.param(major, id=f"openmpi{major}") for major in (4, 5)]


@pytest.fixture
def hosts(tmp_path, monkeypatch):
    """hosta and hostb, named to the launcher as the README does."""
    with TwoHosts(tmp_path) as two:
        monkeypatch.setenv("MULTI_HLS_IPS", ",".join(host.address for host in two.hosts))
        monkeypatch.setenv("DOCKER_SSHD_PORT", str(SSH_PORT))
        yield two


@pytest.fixture
def project(tmp_path):
    return copy_project(tmp_path)


@pytest.fixture
def version(request, monkeypatch):
    if request.param not in MPIRUN_FOLDERS:
        pytest.skip(f"no Open MPI {request.param} here")
    monkeypatch.setenv("PATH", f"{MPIRUN_FOLDERS[request.param]}:{os.environ['PATH']}")


def facts(project):
    return [json.loads((checkpoints(project) / f"phase1_rank{rank}.json").read_text()) for rank in range(4)]


@pytest.mark.parametrize("version", VERSIONS, indirect=True)
def test_ranks_are_spread_and_get_the_environment(hosts, project, version, monkeypatch):
    monkeypatch.setenv("PT_HPU_METRICS_FILE", "/tmp/metrics of me")
    monkeypatch.setenv("HABANA_VISIBLE_MODULES", "0,1")
    hosta, _ = hosts.hosts
    status, out, err, _ = run(hosta.on(words(project, *TWO, "--phase", "1")))
    assert status == 0, err
    assert [seen["host"] for seen in facts(project)] == ["hosta", "hosta", "hostb", "hostb"]
    assert [seen["local_rank"] for seen in facts(project)] == [0, 1, 0, 1]
    for seen in facts(project):
        assert seen["environ"]["MASTER_ADDR"] == hosta.address
        assert seen["environ"]["BERT_HOSTS"] == "192.0.2.1,192.0.2.2"
        assert seen["environ"]["HABANA_VISIBLE_MODULES"] == "0,1"
        assert seen["environ"]["PYTHONPATH"].split(":")[0] == str(project)
        assert seen["environ"]["OMP_NUM_THREADS"]
    assert out.count("café 100 %") == 4
    assert left_running(project) == []


@pytest.mark.parametrize("version", VERSIONS, indirect=True)
def test_a_rank_killed_on_the_other_host(hosts, project, version):
    launcher = start(hosts.hosts[0].on(words(project, *TWO, steps=2000)), project, 4)
    begin = time.monotonic()
    os.kill(facts(project)[3]["pid"], signal.SIGKILL)
    _, err = launcher.communicate(timeout=60)
    assert launcher.returncode == 137, err
    found = re.search(r"phase 1: rank 3 on (\S+): exit status 137 \(killed by signal 9\)", err)
    assert found and found[1] in ("hostb", "192.0.2.2"), err  # Open MPI 4 names a host as it was given
    assert time.monotonic() - begin < 30
    assert left_running(project) == []


@pytest.mark.parametrize("version", VERSIONS, indirect=True)
def test_asked_to_stop_ranks_of_both_hosts_save(hosts, project, version):
    launcher = start(hosts.hosts[0].on(words(project, *TWO, steps=2000)), project, 4)
    launcher.send_signal(signal.SIGTERM)
    _, err = launcher.communicate(timeout=60)
    assert launcher.returncode == 85, err
    assert len(list(checkpoints(project).glob("saved_by_rank_*"))) == 4
    assert left_running(project) == []


@pytest.mark.parametrize("version", VERSIONS, indirect=True)
def test_a_daemon_killed_on_the_other_host_leaves_nothing_running(hosts, project, version):
    launcher = start(hosts.hosts[0].on(words(project, *TWO, steps=2000)), project, 4)
    commands = [(pid, command.split(" ")[0]) for pid, command in hosts.hosts[1].processes()]
    for pid in [pid for pid, program in commands if program.endswith(("/prted", "/orted"))]:
        os.kill(pid, signal.SIGKILL)
    begin = time.monotonic()
    _, err = launcher.communicate(timeout=40)
    assert launcher.returncode in (1, 255), err
    assert not list(checkpoints(project).glob("phase2*"))
    assert time.monotonic() - begin < 30
    wait_until(lambda: left_running(project) == [])


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS, indirect=True)
def test_a_host_that_loses_power(hosts, project, version):
    """Its processes and its link are gone at once, so that nobody says goodbye."""
    launcher = start(hosts.hosts[0].on(words(project, *TWO, steps=2000)), project, 4)
    begin = time.monotonic()
    ip("-n", hosts.bridge, "link", "set", "hostb", "down")
    hosts.hosts[1].stop()
    _, err = launcher.communicate(timeout=60)
    assert launcher.returncode == 1 and "does not answer any more" in err, err
    assert "192.0.2.2" in err
    assert time.monotonic() - begin < 35
    wait_until(lambda: left_running(project) == [])


@pytest.mark.parametrize("version", VERSIONS, indirect=True)
def test_unreachable_hosts_are_found_before_anything_starts(hosts, project, version, monkeypatch):
    monkeypatch.setenv("MULTI_HLS_IPS", "192.0.2.1,192.0.2.99")
    status, _, err, seconds = run(hosts.hosts[0].on(words(project, *TWO)))
    assert status == 2 and "host 192.0.2.99: ssh to port 3022 failed" in err
    assert seconds < 20
    assert not checkpoints(project).exists()


def test_a_host_without_sshd(hosts, project):
    hosts.hosts[1].sshd.kill()
    status, _, err, seconds = run(hosts.hosts[0].on(words(project, *TWO)))
    assert status == 2 and "host 192.0.2.2: ssh to port 3022 failed" in err and "Connection refused" in err
    assert seconds < 20


def test_a_host_whose_key_is_unknown(hosts, project):
    known = hosts.folder / "known_hosts"
    known.write_text("".join(line for line in known.open() if "192.0.2.2" not in line))
    status, _, err, _ = run(hosts.hosts[0].on(words(project, *TWO)))
    assert status == 2 and "host 192.0.2.2: its key is unknown: ssh-keyscan -p 3022" in err


@pytest.mark.parametrize("other", ["another version", "none"])
def test_a_host_with_another_python(hosts, project, other, tmp_path):
    here = os.path.realpath(sys.executable)
    program = tmp_path / "python"
    if other == "none":
        program = Path("/dev/null")
    else:
        found = shutil.which("python3", path="/usr/bin")
        version = subprocess.run([found or "false", "-V"], capture_output=True, text=True).stdout.split()
        if not version or version[1] == ".".join(map(str, sys.version_info[:3])):
            pytest.skip("no second python of another version here")
        program = Path(os.path.realpath(found))
    hosts.hosts[1].stop()
    hosts.hosts[1].start(hosts.files, {here: program})
    status, _, err, _ = run(hosts.hosts[0].on(words(project, *TWO)))
    assert status == 2, err
    expected = f"no {sys.executable} there" if other == "none" else f"python is {version[1]} there"
    assert f"host 192.0.2.2: {expected}" in err


def test_a_host_with_another_copy_of_the_project(hosts, project, tmp_path):
    changed = tmp_path / "changed.py"
    changed.write_text((project / "pretraining" / "run_pretraining.py").read_text() + "# changed\n")
    hosts.hosts[1].stop()
    hosts.hosts[1].start(hosts.files, {f"'{project}/pretraining/run_pretraining.py'": changed})
    status, _, err, _ = run(hosts.hosts[0].on(words(project, *TWO)))
    assert status == 2 and "host 192.0.2.2: project is " in err


# What a rank of either host does to meet the others and to add up a number over gloo, as beside hccl.
MEETING = """
import os, sys
sys.path.insert(0, sys.argv[1])
import torch, torch.distributed as dist
from central.runtime import rank as ranks
from central.runtime.device import open_device
from central.runtime.process_group import init_process_group
rank = ranks.from_environment()
init_process_group(open_device("cpu", "eager", "fp32", rank), rank)
total = torch.ones(1)
dist.all_reduce(total, group=dist.new_group(backend="gloo"))
print(os.environ["GLOO_SOCKET_IFNAME"], int(total))
dist.barrier()
"""


@pytest.mark.parametrize("named", ["", "eth0"])
def test_hosts_whose_own_names_are_of_loopback_meet_over_gloo(hosts, root, tmp_path, named):
    """On Debian a host's own name is 127.0.1.1: gloo, left to itself, would tell the others to connect there."""
    for host in hosts.hosts:
        own = tmp_path / f"hosts_of_{host.name}"
        others = [f"{other.address} {other.name}\n" for other in hosts.hosts if other is not host]
        own.write_text(f"127.0.0.1 localhost\n127.0.1.1 {host.name}\n{''.join(others)}")
        host.stop()
        host.start({**hosts.files, "/etc/hosts": own})
    told = {
        "MASTER_ADDR": "hosta",
        "MASTER_PORT": "12399",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
    }
    told |= {"GLOO_SOCKET_IFNAME": named} if named else {}
    clean = {name: value for name, value in os.environ.items() if name != "GLOO_SOCKET_IFNAME"}
    started = [
        subprocess.Popen(
            host.on([sys.executable, "-c", MEETING, str(root)]),
            env={**clean, **told, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, host in enumerate(hosts.hosts)
    ]
    said = [process.communicate(timeout=90) for process in started]
    assert [out.split() for out, _ in said] == [["eth0", "2"], ["eth0", "2"]], said


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS, indirect=True)
def test_losses_of_two_hosts_are_those_of_one(hosts, root, tmp_path, version, monkeypatch):
    """The real training script, a tiny model: 2 ranks on each of two hosts, and 4 ranks on one."""
    pytest.importorskip("torch")
    from pretraining_helpers import make_corpus, write_config

    make_corpus(tmp_path / "corpus", seq_len=32, max_predictions=5)
    request = f"""pretraining --model_name_or_path tiny --data_type fp32 --device cpu --accumulate_gradients
        --config_file {write_config(tmp_path / "config.json")} --data_dir {tmp_path}/corpus {tmp_path}/corpus
        --max_seq_length 32 32 --train_batch_size 16 16 --batch_size 2 2 --max_steps 6 6 --learning_rate 0.01 0.01
        --phase 1""".split()
    demo = [sys.executable, str(root / "demo_bert.py"), *request]
    losses = {}
    for name, ranks in (("two", TWO), ("one", TWO[:2])):
        status, out, err, _ = run(hosts.hosts[0].on([*demo, *ranks, "--output_dir", str(tmp_path / name)]))
        assert status == 0, out + err
        losses[name] = step_losses(tmp_path / name / "results" / "dllogger.json")
    assert len(losses["two"]) == 6
    assert losses["two"] == pytest.approx(losses["one"], rel=1e-6)


def step_losses(log):
    """Loss of each optimizer step, from the lines of dllogger."""
    found = [json.loads(line.removeprefix("DLLL ")) for line in log.read_text().splitlines()]
    return [line["data"]["step_loss"] for line in found if "step_loss" in line.get("data", {})]
