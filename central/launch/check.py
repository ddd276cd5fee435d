"""`demo_bert.py check`: what this machine has, for people and for bug reports. Starts nothing."""

import platform

from central.launch import devices, hostcheck, machine
from central.launch.hosts import split_addresses
from central.launch.topology import this_machine

PACKAGES = (
    *("torch", "habana-torch-plugin", "numpy", "h5py", "safetensors", "tokenizers"),
    *("transformers", "datasets", "accelerate", "mpi4py", "tensorboard"),
)


def report(environ, capture) -> list[str]:
    """Lines `name: value` of everything a run depends on."""
    facts = hostcheck.facts()
    mpirun = capture(["mpirun", "--version"]).stdout.splitlines()[:1]
    rows = {
        "host": facts["host"],
        "system": platform.platform(),
        "project": f"{machine.ROOT} ({facts['project']})",
        "python": facts["python"],
        **{package: hostcheck.version(package) for package in PACKAGES},
        "mpirun": mpirun[0] if mpirun else "not found",
        "cores": f"{this_machine()} (sockets x cores this process may use)",
        "hpu cards": devices.hpu_count(capture, environ),
        "cuda cards": devices.cuda_count(capture, environ),
        "port 12345": "in use" if machine.port_is_taken(machine.DEFAULT_PORT) else "free",
        "MULTI_HLS_IPS": " ".join(split_addresses(environ.get("MULTI_HLS_IPS", ""))) or "not set",
    }
    width = max(map(len, rows))
    return [f"{name:{width}}  {value}" for name, value in rows.items()]
