"""What every test shares: the project root, a clean environment, and the real data where it is there."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Set by launchers and by users; a test that wants one sets it itself.
LAUNCHER_PREFIXES = (
    "OMPI_",
    "PMIX_",
    "PMI_",
    "SLURM_",
    "PT_HPU_",
    "HABANA_",
    "HCCL_",
    "TORCHELASTIC_",
    "PET_",
    "BERT_",
)
LAUNCHER_NAMES = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "MULTI_HLS_IPS",
    "DOCKER_SSHD_PORT",
    "MPI_ROOT",
)


# Files of minutes: begun first, so that at the end no worker is left alone with one.
LONGEST = ("test_pretraining_script", "test_hpu_matrix", "test_finetuning_scripts")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: (*LONGEST, item.path.stem).index(item.path.stem))


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's folder."""
    return ROOT


@pytest.fixture
def make_no_file() -> Callable[[Path, str], None]:
    """Put something that is no file where one is due: a link that leads nowhere or to itself, a pipe, ..."""

    def make(path: Path, what: str) -> None:
        if what == "pipe":
            os.mkfifo(path)
        elif what == "folder":
            path.mkdir()
        else:
            path.symlink_to({"link": "/no/such/place", "loop": path.name, "device": "/dev/zero"}[what])

    return make


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real text and labels beside the checkout; the test is skipped where they are absent."""
    folder = ROOT.parent / "shared" / "data"
    if not (folder / "vocab" / "vocab.txt").exists():
        pytest.skip(f"no real data at {folder}")
    return folder


@pytest.fixture(scope="session")
def mpirun() -> str:
    """The mpirun on the PATH; the test is skipped where there is none."""
    found = shutil.which("mpirun")
    if found is None:
        pytest.skip("no mpirun on the PATH")
    return found


@pytest.fixture(autouse=True)
def own_signals():
    """A script that runs in this process sets handlers; what it leaves ignored, programs started later inherit."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
    kept = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)
    signal.set_wakeup_fd(-1)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    """No test sees a launcher's variables, reaches a model hub, or uses more than one thread a process."""
    for name in list(os.environ):
        if name.startswith(LAUNCHER_PREFIXES) or name in LAUNCHER_NAMES:
            monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    # mpirun refuses root without these; CI containers run as root.
    monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT", "1")
    monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
