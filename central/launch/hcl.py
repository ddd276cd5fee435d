"""The HCL configuration of old Gaudi software: written where HCL_CONFIG_PATH asks for it; today's hccl needs none."""

import json
import os

from central.errors import BadRequest

DEFAULT_PORT = 53432


def configuration(layout, environ) -> dict:
    """Cards of one server, or the address of each rank in order."""
    port = environ.get("HCL_PORT") or str(DEFAULT_PORT)
    if not port.isdigit():
        raise BadRequest(f"HCL_PORT={port} is no port; unset it to have {DEFAULT_PORT}")
    port = {"HCL_PORT": int(port)}
    if not layout.hosts:
        return port | {"HCL_COUNT": layout.world_size}
    return port | {"HCL_RANKS": [host for host in layout.hosts for _ in range(layout.ranks_per_node)]}


def write_where_asked(layout, device, environ):
    """Write the file that HCL_CONFIG_PATH names, unless it is there."""
    path = environ.get("HCL_CONFIG_PATH")
    if path and device == "hpu" and layout.world_size > 1 and not os.path.exists(path):
        text = json.dumps(configuration(layout, environ))
        try:
            with open(path, "w") as file:
                file.write(text)
        except OSError as error:
            raise BadRequest(f"HCL_CONFIG_PATH={path} cannot be written: {error.strerror}") from None
