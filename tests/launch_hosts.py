"""Two hosts on one machine: network namespaces joined by a bridge, each with an address, a name and an sshd of its own.

The addresses are for documentation only (RFC 5737) and exist in these namespaces alone. Needs root.
"""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

SSH_PORT = 3022
SSHD = "/usr/sbin/sshd"


def why_not() -> str:
    """Why two hosts cannot be made here; empty where they can."""
    if os.geteuid() != 0:
        return "needs root"
    missing = [name for name in ("ip", "unshare", "nsenter", "ssh", "ssh-keygen") if not shutil.which(name)]
    if not os.path.exists(SSHD):
        missing.append("sshd")
    if missing:
        return f"needs {', '.join(missing)}"
    probe = ["unshare", "-n", "-u", "-m", "ip", "link", "add", "probe0", "type", "bridge"]
    tried = subprocess.run(probe, capture_output=True)
    return "" if tried.returncode == 0 else f"no network namespaces with bridges here: {tried.stderr.decode().strip()}"


class Host:
    """One of the hosts. Programs run `on` it see its network, name and files."""

    def __init__(self, name, address, namespace, folder):
        self.name, self.address, self.namespace, self.folder = name, address, namespace, folder
        self.sshd = None

    def start(self, files, other_program=None):
        """Start sshd, with `files` (place: contents of) and `other_program` (place: program) put over the machine's."""
        mounts = [f"mount --bind {source} {place}" for place, source in {**files, **(other_program or {})}.items()]
        script = f"hostname {self.name}; {'; '.join(mounts)}; exec {SSHD} -D -e -f {self.folder}/sshd_config"
        inside = ["ip", "netns", "exec", self.namespace, "unshare", "-u", "-m", "sh", "-ec", script]
        self.sshd = subprocess.Popen(inside, stdout=subprocess.DEVNULL, stderr=(self.folder / "sshd.log").open("w"))
        deadline = time.monotonic() + 10
        while not listens(self):
            assert self.sshd.poll() is None and time.monotonic() < deadline, (self.folder / "sshd.log").read_text()
            time.sleep(0.05)

    def on(self, argv):
        """The words that run a program on this host."""
        working_directory = f"--wd={Path.cwd()}"
        return ["nsenter", f"--target={self.sshd.pid}", "--net", "--uts", "--mount", working_directory, *argv]

    def processes(self):
        """(pid, command line) of everything that runs on this host."""
        mine = os.stat(f"/var/run/netns/{self.namespace}").st_ino
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                if os.stat(f"/proc/{pid}/ns/net").st_ino == mine:
                    yield int(pid), Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue

    def stop(self):
        """What a power cut does."""
        for pid, _ in list(self.processes()):
            os.kill(pid, signal.SIGKILL)
        if self.sshd:
            self.sshd.wait()


def listens(host):
    probe = ["ip", "netns", "exec", host.namespace, "ss", "-Hltn", "sport", "=", f":{SSH_PORT}"]
    return subprocess.run(probe, capture_output=True).stdout != b""


class TwoHosts:
    """hosta and hostb on a network of their own, able to ssh to each other and to themselves."""

    def __init__(self, folder):
        self.folder = folder
        self.bridge = f"bert{os.getpid()}br"
        names = {"hosta": "192.0.2.1", "hostb": "192.0.2.2"}
        self.hosts = [Host(n, address, f"bert{os.getpid()}{n}", folder / n) for n, address in names.items()]
        self.files = {}

    def __enter__(self):
        try:
            self._make_network()
            self._make_keys()
            for host in self.hosts:
                host.start(self.files)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_error):
        for host in self.hosts:
            if os.path.exists(f"/var/run/netns/{host.namespace}"):
                host.stop()
                ip("netns", "delete", host.namespace)
        if os.path.exists(f"/var/run/netns/{self.bridge}"):
            ip("netns", "delete", self.bridge)

    def _make_network(self):
        ip("netns", "add", self.bridge)
        ip("-n", self.bridge, "link", "add", "br0", "type", "bridge")
        ip("-n", self.bridge, "link", "set", "br0", "up")
        for host in self.hosts:
            ip("netns", "add", host.namespace)
            veth = ["type", "veth", "peer", "name", "eth0", "netns", host.namespace]
            ip("-n", self.bridge, "link", "add", host.name, *veth)
            ip("-n", self.bridge, "link", "set", host.name, "master", "br0", "up")
            ip("-n", host.namespace, "address", "add", f"{host.address}/24", "dev", "eth0")
            for interface in ("lo", "eth0"):
                ip("-n", host.namespace, "link", "set", interface, "up")

    def _make_keys(self):
        """Keys, and the files that the hosts see in place of the machine's: the user's own ssh is not touched."""
        Path("/run/sshd").mkdir(exist_ok=True)
        keygen(self.folder / "user_key")
        known = []
        for host in self.hosts:
            host.folder.mkdir()
            public = keygen(host.folder / "host_key")
            known.append(f"[{host.address}]:{SSH_PORT} {public}")
            (host.folder / "sshd_config").write_text(
                f"Port {SSH_PORT}\nListenAddress {host.address}\nHostKey {host.folder}/host_key\nPidFile none\n"
                f"AuthorizedKeysFile {self.folder}/user_key.pub\nStrictModes no\nUsePAM no\nPermitRootLogin yes\n"
                "PasswordAuthentication no\n"
            )
        (self.folder / "known_hosts").write_text("".join(known))
        (self.folder / "ssh_config").write_text(
            f"IdentityFile {self.folder}/user_key\nUserKnownHostsFile {self.folder}/known_hosts\n"
            "GlobalKnownHostsFile /dev/null\nStrictHostKeyChecking yes\n"
        )
        lines = [f"{host.address} {host.name}\n" for host in self.hosts]
        (self.folder / "hosts").write_text("127.0.0.1 localhost\n" + "".join(lines))
        self.files = {"/etc/ssh/ssh_config": self.folder / "ssh_config", "/etc/hosts": self.folder / "hosts"}


def keygen(path):
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return path.with_suffix(".pub").read_text()


def ip(*words):
    subprocess.run(["ip", *words], check=True)
