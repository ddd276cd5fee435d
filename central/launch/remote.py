"""Other hosts, asked over ssh whether they can take part in a run."""

import json
import os
import shlex

from central.launch import hostcheck
from central.launch.hosts import DEFAULT_SSH_PORT

CONNECT_SECONDS = 5
ANSWER_SECONDS = 30


def host_problems(place, capture_all) -> list[str]:
    """What is wrong with the hosts of a run: not to be reached, or not like this one."""
    hosts = place.layout.hosts
    port = place.environ.get("DOCKER_SSHD_PORT", DEFAULT_SSH_PORT)
    answers = capture_all([question(host, port, place) for host in hosts], timeout=ANSWER_SECONDS) if hosts else []
    here = hostcheck.facts()
    found = [(host, fault) for host, answer in zip(hosts, answers) for fault in faults(answer, here, port, place)]
    return [f"host {host}: {fault}" for host, fault in found] + equal_names(hosts, answers)


def question(host, port, place) -> list[str]:
    """The ssh command that asks a host for its facts. It never waits for a password."""
    script = os.path.join(place.root, "central", "launch", "hostcheck.py")
    settings = ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_SECONDS}"]
    return ["ssh", "-p", port, *settings, host, shlex.join([place.python, script])]


def faults(answer, here, port, place) -> list[str]:
    """What an answer says is wrong with its host."""
    if answer.status == 0:
        there = json.loads(answer.stdout.splitlines()[-1])
        unequal = [name for name in ("python", "torch", "project") if there[name] != here[name]]
        return [f"{name} is {there[name]} there, {here[name]} here; make them the same" for name in unequal]
    said = (answer.stderr.strip().splitlines() or ["no answer"])[-1]
    if answer.status == 127:
        return [f"no {place.python} there; install the same python at the same path"]
    if answer.status == 2:
        return [f"no project at {place.root} there; put the same copy at the same path"]
    if "Host key verification failed" in said:
        return [f"its key is unknown: ssh-keyscan -p {port} HOST >> ~/.ssh/known_hosts"]
    return [f"ssh to port {port} failed ({said}); sshd must run there (DOCKER_SSHD_PORT) and take your key"]


def equal_names(hosts, answers) -> list[str]:
    """Hosts that call themselves alike: MPI takes them for one."""
    names = {}
    for host, answer in zip(hosts, answers):
        if answer.status == 0:
            names.setdefault(json.loads(answer.stdout.splitlines()[-1])["host"], []).append(host)
    return [f"{' and '.join(same)} both call themselves {name}" for name, same in names.items() if len(same) > 1]
