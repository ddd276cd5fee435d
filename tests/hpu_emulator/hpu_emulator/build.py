"""Builds device.cpp once for each torch version and keeps it in the project's .cache/hpu_emulator."""

import fcntl
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1] / "device.cpp"
CACHE = SOURCE.parents[2] / ".cache" / "hpu_emulator"


def compiler() -> str | None:
    """The C++ compiler: $CXX, else g++; None where there is none."""
    return shutil.which(os.environ.get("CXX", "g++"))


def library() -> Path:
    """The built device, made first where it is missing. Processes that come at the same time wait for one build."""
    import torch
    from torch.utils import cpp_extension

    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]
    built = CACHE / f"device-{torch.__version__}-{digest}.so"
    if built.exists():
        return built
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not built.exists():
            half = built.with_suffix(".half")
            subprocess.run(
                [
                    *(compiler() or "g++", "-O1", "-shared", "-fPIC", "-std=c++20", "-w"),
                    *(f"-I{folder}" for folder in cpp_extension.include_paths()),
                    *(f"-L{folder}" for folder in cpp_extension.library_paths()),
                    *(f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}", str(SOURCE), "-o", str(half)),
                    *("-lc10", "-ltorch_cpu"),
                ],
                check=True,
            )
            half.rename(built)
    return built
