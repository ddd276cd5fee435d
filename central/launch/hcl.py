"""The HCL configuration of old Gaudi software: written where HCL_CONFIG_PATH asks for it; today's hccl needs none."""

import json
import os

DEFAULT_PORT = 53432


def configuration(layout, environ) -> dict:
    """Cards of one server, or the address of each rank in order."""
    port = {"HCL_PORT": int(environ.get("HCL_PORT", DEFAULT_PORT))}
    if not layout.hosts:
        return port | {"HCL_COUNT": layout.world_size}
    return port | {"HCL_RANKS": [host for host in layout.hosts for _ in range(layout.ranks_per_node)]}


def write_where_asked(layout, device, environ):
    """Write the file that HCL_CONFIG_PATH names, unless it is there."""
    path = environ.get("HCL_CONFIG_PATH")
    if path and device == "hpu" and layout.world_size > 1 and not os.path.exists(path):
        with open(path, "w") as file:
            json.dump(configuration(layout, environ), file)
