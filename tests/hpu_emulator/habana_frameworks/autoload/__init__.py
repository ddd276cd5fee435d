"""Test double: `import torch` loads the plugin by itself where the rule of release 1.19 says so."""

import os


def __autoload() -> None:
    wanted = os.environ.get("PT_HPU_AUTOLOAD")
    if wanted is None:
        wanted = "0" if os.environ.get("PT_HPU_LAZY_MODE", "1") == "1" else "1"
    if wanted == "1":
        import habana_frameworks.torch
