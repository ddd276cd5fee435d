"""Limits of control groups, wherever they stand above a process: made up for both versions, and for real."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from launch_project import copy_project, run, words

from central import resources

ROOT = Path(__file__).resolve().parents[1]
HYBRID = """9:name=systemd:/user.slice
5:cpu,cpuacct:/slurm/uid_0/job_7/step_batch
4:memory:/slurm/uid_0/job_7/step_batch
0::/user.slice/a b
"""
# One mount a line: its root, where it is, its type and its controllers.
MOUNTS_V1 = [("/", "cpu", "cgroup", "rw,cpu,cpuacct"), ("/", "memory", "cgroup", "rw,memory")]
MOUNTS_V2 = [("/", "", "cgroup2", "rw,nsdelegate")]


@pytest.fixture
def made_up(tmp_path):
    """proc(cgroup, mounts, files): a /proc/self and the mounts it names, with these files."""

    def make(cgroup, mounts, **files):
        lines = []
        for number, (root, where, kind, options) in enumerate(mounts):
            mounted = str(tmp_path / "fs" / where).rstrip("/").replace(" ", "\\040")
            lines.append(f"{30 + number} 23 0:{number} {root} {mounted} rw,relatime shared:9 - {kind} {kind} {options}")
        (tmp_path / "mountinfo").write_text("22 1 8:1 / / rw - ext4 /dev/sda rw\n" + "\n".join(lines) + "\n")
        (tmp_path / "cgroup").write_text(cgroup)
        for name, text in files.items():
            path = tmp_path / "fs" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return str(tmp_path)

    return make


STEP = "slurm/uid_0/job_7/step_batch"
UNIT = "system.slice/bert.service"


@pytest.mark.parametrize(
    ("cgroup", "mounts", "files", "expected"),
    [
        ("0::/\n", MOUNTS_V2, {"cpu.max": "150000 100000\n"}, 1),
        ("0::/\n", MOUNTS_V2, {"cpu.max": "max 100000\n"}, None),
        ("0::/\n", MOUNTS_V2, {}, None),
        # A unit of systemd with CPUQuota=300%, or one within such a slice.
        (f"0::/{UNIT}\n", MOUNTS_V2, {f"{UNIT}/cpu.max": "300000 100000"}, 3),
        (f"0::/{UNIT}\n", MOUNTS_V2, {f"{UNIT}/cpu.max": "max 100000", "system.slice/cpu.max": "200000 100000"}, 2),
        (f"0::/{UNIT}\n", MOUNTS_V2, {f"{UNIT}/cpu.max": "600000 100000", "system.slice/cpu.max": "200000 100000"}, 2),
        # A step of SLURM in version 1, beside a version 2 without controllers; the limit is the job's.
        (
            HYBRID,
            [*MOUNTS_V1, ("/", "unified", "cgroup2", "rw")],
            {f"cpu/{STEP}/cpu.cfs_quota_us": "-1", f"cpu/{STEP}/cpu.cfs_period_us": "100000"}
            | {"cpu/slurm/uid_0/job_7/cpu.cfs_quota_us": "400000"}
            | {"cpu/slurm/uid_0/job_7/cpu.cfs_period_us": "100000"},
            4,
        ),
        # A container: the mount's root is its own group, by the host's name or by none.
        ("0::/\n", [("/docker/abc", "", "cgroup2", "rw")], {"cpu.max": "100000 100000"}, 1),
        ("0::/docker/abc/x\n", [("/docker/abc", "", "cgroup2", "rw")], {"x/cpu.max": "50000 100000"}, 1),
        ("0::/../../other\n", MOUNTS_V2, {"cpu.max": "200000 100000"}, 2),
        ("3:cpu:/docker/abc\n", [("/docker/abc", "cpu", "cgroup", "rw,cpu")], {"cpu/cpu.cfs_quota_us": "x"}, None),
        # Blanks in names.
        ("0::/a b/c\n", MOUNTS_V2, {"a b/cpu.max": "200000 100000"}, 2),
    ],
)
def test_processors(made_up, cgroup, mounts, files, expected):
    assert resources.processors(made_up(cgroup, mounts, **files)) == expected


def test_files_the_kernel_can_drop_count_as_free_memory(made_up):
    stat = "anon 1000\ninactive_file 6000\nfile 6500\n"
    files = {"memory.max": "9000", "memory.current": "8000", "memory.stat": stat}
    proc = made_up(f"0::/{UNIT}\n", MOUNTS_V2, **{f"{UNIT}/{name}": text for name, text in files.items()})
    assert resources.free_memory(proc) == 9000 - 8000 + 6000


@pytest.mark.parametrize(
    ("cgroup", "mounts", "files", "expected"),
    [
        # MemoryHigh= of the slice is tighter than MemoryMax= of the unit.
        (
            f"0::/{UNIT}\n",
            MOUNTS_V2,
            {f"{UNIT}/memory.max": "9000", f"{UNIT}/memory.current": "100", f"{UNIT}/memory.high": "max"}
            | {"system.slice/memory.max": "max", "system.slice/memory.high": "5000"}
            | {"system.slice/memory.current": "1000"},
            4000,
        ),
        # --mem of a SLURM job, whose step has no limit of its own (in version 1 that is a huge number).
        (
            HYBRID,
            MOUNTS_V1,
            {f"memory/{STEP}/memory.limit_in_bytes": "9223372036854771712"}
            | {f"memory/{STEP}/memory.usage_in_bytes": "10"}
            | {"memory/slurm/uid_0/job_7/memory.limit_in_bytes": "7000"}
            | {"memory/slurm/uid_0/job_7/memory.usage_in_bytes": "3000"}
            | {"memory/slurm/uid_0/job_7/memory.stat": "total_inactive_file 500\ninactive_file 1"},
            4500,
        ),
        ("0::/\n", MOUNTS_V2, {"memory.max": "max", "memory.current": "5"}, None),
        ("0::/\n", MOUNTS_V2, {"memory.max": "5", "memory.current": "50"}, 0),
        ("", MOUNTS_V2, {"memory.max": "5", "memory.current": "50"}, None),
    ],
)
def test_free_memory(made_up, cgroup, mounts, files, expected):
    assert resources.free_memory(made_up(cgroup, mounts, **files)) == expected


ANSWER = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
for folder in sys.argv[1:]:
    open(os.path.join(folder, "cgroup.procs"), "w").write(str(os.getpid()))
from central import resources
from central.launch.machine import this_machine
print(this_machine().cores, resources.free_memory())
"""


@pytest.mark.parametrize(
    ("cgroup", "mounts", "files", "expected"),
    [
        (f"0::/{UNIT}\n", MOUNTS_V2, {f"{UNIT}/memory.events": "low 0\noom 3\noom_kill 2\noom_group_kill 0\n"}, 2),
        (HYBRID, MOUNTS_V1, {f"memory/{STEP}/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n"}, 1),
        ("0::/\n", MOUNTS_V2, {}, 0),
    ],
)
def test_killed_for_memory(made_up, cgroup, mounts, files, expected):
    assert resources.killed_for_memory(made_up(cgroup, mounts, **files)) == expected


@pytest.fixture
def real_groups():
    """Groups of this machine's kernel: the limits stand in the outer ones, a process goes into the inner ones."""
    name = f"bert_test_{os.getpid()}"
    version_2 = Path("/sys/fs/cgroup/cgroup.controllers").exists()
    tops = [Path("/sys/fs/cgroup")] if version_2 else [Path(f"/sys/fs/cgroup/{kind}") for kind in ("cpu", "memory")]
    limits = (
        {"cpu.max": "100000 100000", "memory.max": 2**30}
        if version_2
        else {"cpu.cfs_quota_us": 100000, "memory.limit_in_bytes": 2**30}
    )
    made = []
    try:
        for top in tops:
            for folder in (top / name, top / name / "inner"):
                folder.mkdir()
                made.append(folder)
            for file, text in limits.items():
                if version_2 or file.startswith(top.name):
                    (top / name / file).write_text(str(text))
    except OSError as error:
        for folder in reversed(made):
            folder.rmdir()
        pytest.skip(f"no control groups can be made here: {error}")
    yield [str(folder) for folder in made if folder.name == "inner"]
    for folder in reversed(made):
        folder.rmdir()


def test_a_limit_of_the_kernel_above_the_group_of_a_process(real_groups):
    done = subprocess.run([sys.executable, "-c", ANSWER, *real_groups], capture_output=True, text=True)
    cores, free = done.stdout.split()
    assert cores == "1", done.stderr
    assert 0 < int(free) <= 2**30


JOIN = """
import os, sys
*folders, program = sys.argv[1].split(":")
for folder in folders:
    open(os.path.join(folder, "cgroup.procs"), "w").write(str(os.getpid()))
os.execv(program, sys.argv[2:])
"""


@pytest.mark.mpi
@pytest.mark.parametrize("options", [[], ["--world_size", "2"]])
def test_a_rank_that_the_limit_of_memory_killed_says_so(real_groups, tmp_path, options, request):
    if options:
        request.getfixturevalue("mpirun")
    argv = words(copy_project(tmp_path), *options, act="swallow", rank=len(options) // 2, steps=400)
    joined = [sys.executable, "-c", JOIN, ":".join([*real_groups, sys.executable]), *argv]
    status, _, err, _ = run(joined)
    assert status == 137, err
    assert "the memory limit of its control group was reached" in err.splitlines()[-1]
