"""Other hosts: asked over ssh whether they can take part in a run, and watched while it lasts."""

import json
import os
import shlex
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from central import meeting
from central.launch import hostcheck
from central.launch.commands import Target
from central.launch.hosts import DEFAULT_SSH_PORT
from central.launch.processes import Captured

CaptureAll = Callable[..., list[Captured]]

CONNECT_SECONDS = 5
ANSWER_SECONDS = 30
KNOCK_SECONDS = 10  # between two knocks at a host that answers
KNOCK_AGAIN_SECONDS = 1  # at one that did not
KNOCK_TIMEOUT = 3
MISSED_KNOCKS = 3  # make a host lost: 22 s at most


def host_problems(target: Target, capture_all: CaptureAll) -> list[str]:
    """What is wrong with the hosts of a run: not to be reached, or not like this one, which needs no ssh to itself."""
    hosts = target.layout.hosts if target.layout.by_ssh else ()
    port = target.ssh_port
    if hosts and not (port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
        return [f"DOCKER_SSHD_PORT={port} is no port; unset it for {DEFAULT_SSH_PORT}"]
    here = hostcheck.facts()
    answers = {host: Captured(0, json.dumps(here), "") for host in hosts if meeting.is_this_machine(host)}
    others = [host for host in hosts if host not in answers]
    if others:
        told = capture_all([question(host, port, target) for host in others], timeout=ANSWER_SECONDS)
        answers |= dict(zip(others, told))
    found = [
        (host, "other hosts do not find this one under that name; give its name in the network or its address")
        for host in hosts
        if others and host in meeting.LOCAL_NAMES
    ]
    found += [(host, fault) for host in hosts for fault in faults(host, answers[host], here, port, target)]
    return [f"host {host}: {fault}" for host, fault in found] + equal_names(answers)


def question(host: str, port: str, target: Target) -> list[str]:
    """The ssh command that asks a host for its facts, and the first for the ranks' port. It waits for no password."""
    script = os.path.join(target.root, "central", "launch", "hostcheck.py")
    port_to_meet = [target.meeting_point.port] if host == target.layout.hosts[0] else []
    settings = ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_SECONDS}"]
    return ["ssh", "-p", port, *settings, host, shlex.join([target.python, script, *port_to_meet])]


def faults(host: str, answer: Captured, here: Mapping[str, str], port: str, target: Target) -> list[str]:
    """What an answer says is wrong with its host."""
    there = facts_of(answer)
    if there:
        unequal = [name for name in ("python", "torch", "project") if there.get(name) != here[name]]
        found = [f"{name} is {there.get(name)} there, {here[name]} here; make them the same" for name in unequal]
        if taken := there.get("port_in_use"):
            found.append(f"port {taken} is in use there, where the ranks are to meet; set MASTER_PORT to a free one")
        return found
    if answer.status in (126, 127):
        return [f"no {target.python} there; install the same python at the same path"]
    if answer.status == 2:
        return [f"no project at {target.root} there; put the same copy at the same path"]
    if "Host key verification failed" in answer.complaint:
        return [f"its key is unknown: ssh-keyscan -p {port} {host} >> ~/.ssh/known_hosts"]
    return [f"ssh to port {port} failed ({answer.complaint}); sshd must run there (DOCKER_SSHD_PORT) and take your key"]


def facts_of(answer: Captured) -> dict[str, str]:
    """The facts a host gave, in its last line: a greeting may stand before it. Empty where it gave none."""
    if answer.status != 0 or not answer.stdout.strip():
        return {}
    try:
        return json.loads(answer.stdout.splitlines()[-1])
    except ValueError:
        return {}


def equal_names(answers: Mapping[str, Captured]) -> list[str]:
    """Hosts that call themselves alike: MPI takes them for one."""
    names: dict[str, list[str]] = {}
    for host, answer in answers.items():
        if there := facts_of(answer):
            names.setdefault(there["host"], []).append(host)
    return [
        f"{' and '.join(same)} both call themselves {name}: name each host once, and give hosts different names"
        for name, same in names.items()
        if len(same) > 1
    ]


class HostWatch:
    """Knocks at the ssh port of each host now and then.

    A host that loses power or network says no goodbye, and mpirun waits for it for minutes. A host that is reached by
    other ways than its address, and so does not answer the first knock, is not watched.
    """

    def __init__(self, hosts: Sequence[str], port: str):
        self.lost: str | None = None
        others = [host for host in hosts if not meeting.is_this_machine(host)]
        if others:
            threading.Thread(target=self._watch, args=(others, int(port)), daemon=True).start()

    def _watch(self, hosts: Sequence[str], port: int) -> None:
        missed = {host: 0 for host in hosts if answers(host, port)}
        while missed and not self.lost:
            time.sleep(KNOCK_AGAIN_SECONDS if any(missed.values()) else KNOCK_SECONDS)
            for host in missed:
                missed[host] = 0 if answers(host, port) else missed[host] + 1
                if missed[host] == MISSED_KNOCKS:
                    self.lost = host


def answers(host: str, port: int) -> bool:
    """Whether something listens on this port of a host."""
    try:
        socket.create_connection((host, port), timeout=KNOCK_TIMEOUT).close()
    except OSError:
        return False
    return True
