"""The HCL configuration of old Gaudi software: written where HCL_CONFIG_PATH asks for it; today's hccl needs none."""

import json
import os
from collections.abc import Mapping

from central.errors import BadRequest
from central.launch.hosts import Layout

DEFAULT_PORT = 53432


def configuration(layout: Layout, environ: Mapping[str, str]) -> dict[str, object]:
    """Cards of one server, or the address of each rank in order."""
    asked = environ.get("HCL_PORT") or str(DEFAULT_PORT)
    if not asked.isdigit():
        raise BadRequest(f"HCL_PORT={asked} is no port; unset it to have {DEFAULT_PORT}")
    port: dict[str, object] = {"HCL_PORT": int(asked)}
    if not layout.hosts:
        return port | {"HCL_COUNT": layout.world_size}
    return port | {"HCL_RANKS": [host for host in layout.hosts for _ in range(layout.ranks_per_node)]}


def write_where_asked(layout: Layout, device: str, environ: Mapping[str, str]) -> None:
    """Write the file that HCL_CONFIG_PATH names, unless it is there."""
    path = environ.get("HCL_CONFIG_PATH")
    if path and device == "hpu" and layout.world_size > 1 and not os.path.exists(path):
        text = json.dumps(configuration(layout, environ))
        try:
            with open(path, "w") as file:
                file.write(text)
        except OSError as error:
            raise BadRequest(f"HCL_CONFIG_PATH={path} cannot be written: {error.strerror}") from None
