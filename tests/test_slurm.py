"""Runs under a real SLURM: the ways people start them, and the ways it stops them.

The training scripts are stand-ins (launch_child.py); everything around them is real.
"""

import json
import os
import shlex
import sys

import launch_hosts
import pytest
import slurm_node
from launch_project import checkpoints, copy_project, left_running, wait_until, words
from test_launch_runner import MPIRUN_FOLDERS

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.mpi,
    pytest.mark.skipif(bool(slurm_node.why_not()), reason=f"no SLURM here: {slurm_node.why_not()}"),
]
LONG = 2000  # steps


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    with slurm_node.SlurmNode(tmp_path_factory.mktemp("slurm")) as node:
        yield node


@pytest.fixture
def project(tmp_path):
    return copy_project(tmp_path)


@pytest.fixture(params=[4, 5])
def mpirun(request, monkeypatch):
    """Both versions of Open MPI in turn, the first on the PATH."""
    if request.param not in MPIRUN_FOLDERS:
        pytest.skip(f"no Open MPI {request.param} here")
    monkeypatch.setenv("PATH", f"{MPIRUN_FOLDERS[request.param]}:{os.environ['PATH']}")


class Job:
    """A batch job."""

    def __init__(self, slurm, project, script, *options):
        self.slurm, self.output = slurm, project.parent / "job.out"
        file = project.parent / "job.sh"
        file.write_text(f"#!/bin/bash\n{script}\n")
        place = [f"--output={self.output}", "--open-mode=append", f"--chdir={project.parent}"]
        done = slurm.ask("sbatch", "--parsable", *place, *options, str(file))
        assert done.returncode == 0, done.stderr
        self.number = done.stdout.strip()

    def wait(self, seconds=60) -> str:
        """What became of it, such as COMPLETED."""
        wait_until(lambda: self.state()["JobState"] not in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING"), seconds)
        return self.state()["JobState"]

    def state(self):
        return self.slurm.state(self.number)

    def said(self) -> str:
        return self.output.read_text() if self.output.exists() else ""


def launcher(project, *options, steps=3, **script) -> str:
    return shlex.join(words(project, "--world_size", "2", "--phase", "1", *options, steps=steps, **script))


def script(project, steps=3) -> str:
    """The stand-in's own command line."""
    own = project / "pretraining" / "run_pretraining.py"
    return shlex.join([sys.executable, str(own), "--output_dir", str(checkpoints(project)), "--steps", str(steps)])


def ranks(project) -> list[dict]:
    files = sorted(checkpoints(project).glob("phase1_rank*.json"))
    return [json.loads(file.read_text()) for file in files]


def saved(project) -> int:
    return len(list(checkpoints(project).glob("saved_by_rank_*")))


def starts(slurm, project, command, *options):
    job = Job(slurm, project, command, *options)
    assert job.wait() == "COMPLETED", job.said()
    found = [(seen["rank"], seen["local_rank"], seen["world_size"]) for seen in ranks(project)]
    assert found == [(0, 0, 2), (1, 1, 2)], job.said()


@pytest.mark.parametrize("options", [("-n2",), ("-n1", "-c2")], ids=" ".join)
def test_the_launcher_in_a_batch_script(slurm, project, mpirun, options):
    starts(slurm, project, launcher(project), *options)


def test_the_launcher_as_a_step(slurm, project, mpirun):
    starts(slurm, project, f"srun -n1 -c2 {launcher(project)}", "-n2")


def test_the_launcher_with_torchrun(slurm, project):
    starts(slurm, project, launcher(project, "--no_mpirun"), "-n2")


def test_torchrun_of_the_script(slurm, project):
    ours = shlex.split(script(project))
    starts(slurm, project, shlex.join([ours[0], "-m", "torch.distributed.run", "--nproc_per_node=2", *ours[1:]]), "-n2")


def test_srun_of_the_script(slurm, project):
    starts(slurm, project, f"srun {script(project)}", "-n2")


def test_salloc_of_the_launcher(slurm, project, mpirun):
    done = slurm.ask("salloc", "-n2", *shlex.split(launcher(project)))
    assert done.returncode == 0, done.stderr
    assert [seen["world_size"] for seen in ranks(project)] == [2, 2]


@pytest.mark.parametrize("shell", ["salloc -n2", "srun -n1"])
def test_a_script_alone_in_a_job_of_two(slurm, project, shell):
    if shell.startswith("salloc"):
        done = slurm.ask("salloc", "-n2", *shlex.split(script(project)))
        assert done.returncode == 0, done.stderr
    else:
        assert (job := Job(slurm, project, f"{shell} {script(project)}", "-n2")).wait() == "COMPLETED", job.said()
    assert [(seen["rank"], seen["world_size"]) for seen in ranks(project)] == [(0, 1)]


def begun(slurm, project, command, *options, of=2) -> Job:
    """A job whose ranks run."""
    job = Job(slurm, project, command, *options)
    wait_until(lambda: len(ranks(project)) == of or job.state()["JobState"] not in ("PENDING", "RUNNING"))
    assert len(ranks(project)) == of, job.said()
    return job


# How the launcher stands in a batch script, and who is told: all processes of the job, the shell alone, or its steps.
STOPS = [
    ("{}", ["scancel"]),
    ("srun -n1 -c2 {}", ["scancel"]),
    ("{}", ["scancel", "--batch", "--signal=TERM"]),
    ("exec {}", ["scancel", "--batch", "--signal=TERM"]),
    ("{}", ["scancel", "--full", "--signal=INT"]),
]


@pytest.mark.parametrize(
    ("script", "cancel"), STOPS, ids=lambda part: part if isinstance(part, str) else " ".join(part)
)
def test_a_cancelled_job_saves(slurm, project, monkeypatch, script, cancel):
    monkeypatch.setenv("PATH", f"{MPIRUN_FOLDERS[max(MPIRUN_FOLDERS)]}:{os.environ['PATH']}")
    job = begun(slurm, project, script.format(launcher(project, steps=LONG)), "-n2")
    slurm.ask(*cancel, job.number)
    job.wait()
    wait_until(lambda: not left_running(project))
    assert saved(project) == 2, job.said()
    assert "stopped after saving" in job.said()


def test_a_cancelled_job_saves_with_the_other_mpirun(slurm, project, monkeypatch):
    monkeypatch.setenv("PATH", f"{MPIRUN_FOLDERS[min(MPIRUN_FOLDERS)]}:{os.environ['PATH']}")
    job = begun(slurm, project, launcher(project, steps=LONG), "-n2")
    slurm.ask("scancel", job.number)
    job.wait()
    wait_until(lambda: not left_running(project))
    assert saved(project) == 2, job.said()


def requeueing(project) -> str:
    """A batch script that queues itself again when its run has saved; the second time it has three steps."""
    command = launcher(project, "--resume_from_checkpoint")
    ours, _, childs = command.partition(" -- ")
    childs = childs.replace("--steps 3", "--steps $(( ${SLURM_RESTART_COUNT:-0} ? 3 : 2000 ))")
    return f"""srun -n1 -c2 {ours} -- {childs}; status=$?
if [ $status = 85 ]; then scontrol requeue $SLURM_JOB_ID; sleep 30; fi
exit $status"""


def test_a_job_that_saved_is_queued_again_and_resumes_by_itself(slurm, project, mpirun):
    job = begun(slurm, project, requeueing(project), "-n2", "--requeue")
    slurm.ask("scancel", "--signal=TERM", job.number)
    wait_until(lambda: job.state()["Restarts"] == "1" and job.state()["JobState"] == "PENDING")
    slurm.ask("scontrol", "update", f"JobId={job.number}", "StartTime=now+3")  # SLURM would wait two minutes
    assert job.wait() == "COMPLETED", job.said()
    assert job.state()["Restarts"] == "1" and saved(project) == 2
    assert all("--resume_from_checkpoint" in seen["argv"] for seen in ranks(project))


@pytest.mark.slow
def test_a_signal_before_the_time_limit_and_requeue(slurm, project):
    job = begun(slurm, project, requeueing(project), "-n2", "--requeue", "--time=1", "--signal=TERM@30")
    assert job.wait(300) == "COMPLETED", job.said()
    assert job.state()["Restarts"] == "1" and saved(project) == 2


@pytest.mark.slow
@pytest.mark.parametrize("script", ["{}", "srun -n1 -c2 {}"])
def test_a_job_saves_at_the_end_of_its_time(slurm, project, mpirun, script):
    job = begun(slurm, project, script.format(launcher(project, steps=20 * LONG)), "-n2", "--time=1")
    assert job.wait(150) == "TIMEOUT", job.said()
    wait_until(lambda: not left_running(project))
    assert saved(project) == 2, job.said()


@pytest.fixture
def two_nodes(tmp_path_factory):
    """A SLURM of two hosts of launch_hosts.py."""
    if why_not := launch_hosts.why_not():
        pytest.skip(why_not)
    folder = tmp_path_factory.mktemp("hosts")
    with (
        launch_hosts.TwoHosts(folder) as two,
        slurm_node.SlurmNode(tmp_path_factory.mktemp("slurm"), two.hosts) as node,
    ):
        yield node


def over_two(project, *options, **script) -> str:
    return launcher(project, "--world_size", "4", *options, **script)


@pytest.mark.hosts
@pytest.mark.parametrize("options", [("-N2", "-n4"), ("-N2", "-n2", "-c2")], ids=" ".join)
def test_the_launcher_on_two_nodes(two_nodes, project, mpirun, options):
    job = Job(two_nodes, project, over_two(project), *options)
    assert job.wait() == "COMPLETED", job.said()
    found = [(seen["rank"], seen["local_rank"], seen["world_size"], seen["host"]) for seen in ranks(project)]
    assert found == [(0, 0, 4, "hosta"), (1, 1, 4, "hosta"), (2, 0, 4, "hostb"), (3, 1, 4, "hostb")], job.said()
    assert {seen["environ"]["MASTER_ADDR"] for seen in ranks(project)} == {"hosta"}


@pytest.mark.hosts
def test_a_cancelled_job_of_two_nodes_saves(two_nodes, project, mpirun):
    job = begun(two_nodes, project, over_two(project, steps=LONG), "-N2", "-n4", of=4)
    two_nodes.ask("scancel", job.number)
    job.wait()
    wait_until(lambda: not left_running(project))
    assert saved(project) == 4, job.said()
