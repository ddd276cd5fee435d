"""Test double: torch.compile(backend="hpu_backend"). A graph runs as it was traced; how many there are is counted.

torch finds it by its entry point.
"""

import itertools
import os

from hpu_emulator import state

_numbers, _traced = itertools.count(1), itertools.count(1)


if os.environ.get("PT_HPU_ENABLE_COMPILED_AUTOGRAD", "0") not in ("0", "false"):
    from habana_frameworks.torch.dynamo.compile_backend.experimental import enable_compiled_autograd

    enable_compiled_autograd()


def _hpu_backend(graph, example_inputs, **options):
    """Needs the eager mode, as Habana's does."""
    from torch._dynamo.backends.common import aot_autograd

    assert not state.lazy, "hpu_backend needs PT_HPU_LAZY_MODE=0"
    import torch

    if any(isinstance(value, torch.SymInt) for value in example_inputs):
        state.dynamic_graphs += 1
    state.library.hpu_emulator_see_graph(f"graph {next(_traced)} that dynamo traced".encode())
    return aot_autograd(fw_compiler=_compile, bw_compiler=_compile)(graph, example_inputs)


def _compile(graph, example_inputs):
    from functorch.compile import make_boxed_func

    shapes = [tuple(getattr(value, "shape", ())) for value in example_inputs]
    state.library.hpu_emulator_see_graph(f"compiled graph {next(_numbers)} of inputs {shapes[:4]}...".encode())

    def run(*args):
        state.library.hpu_emulator_compiled_graph(1)
        try:
            return graph(*args)
        finally:
            state.library.hpu_emulator_compiled_graph(-1)

    return make_boxed_func(run)
