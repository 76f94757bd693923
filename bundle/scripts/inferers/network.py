"""The network as it samples: on its device, in its precision, compiled where that pays."""

from __future__ import annotations

from typing import Callable, Optional, Union

import torch
from torch import Tensor

from ..networks.base import DenoisingNetwork
from ..settings import usable_device
from .inferer import uses_bf16

# torch.compile takes 8 s and saves 9 ms of a call at 64^3 and 57 ms at 128^3 on a CPU with AMX (docs/performance.md)
COMPILE_FROM_CALLS = 1000


def inference_network(
    network: DenoisingNetwork,
    device: Union[str, torch.device],
    bf16: Optional[bool] = None,
    compile: Optional[bool] = False,
    num_calls: int = 0,
) -> DenoisingNetwork:
    """The network on its device, in eval mode.

    Args:
        network: with its weights.
        device: where it runs.
        bf16: weights in bfloat16; None where the hardware is faster with it.
        compile: through torch.compile: with weights frozen into the code on a CPU, as a CUDA graph on a GPU. None where
            it was measured to pay.
        num_calls: network calls of the run, which say whether compiling pays.

    Raises:
        ValueError: in one line, when the device is not there, a switch is neither True nor False, or there is no C++
            compiler to compile with.
    """
    device = usable_device(device)
    fast = uses_bf16(device, bf16)
    network = network.to(device, torch.bfloat16 if fast else torch.float32).eval().requires_grad_(False)
    unasked = compile is None and fast and compiling_pays(device, num_calls) and hasattr(network, "predict")
    if compile and not _has_compiler():
        raise ValueError("compile needs a C++ compiler, for instance g++; install one or set compile to False")
    if compile or unasked:
        name = "predict" if hasattr(network, "predict") else "forward"
        compiled = _compiled(getattr(network, name), device)
        if unasked:  # a failure costs time, not the run
            compiled = torch._dynamo.config.patch(suppress_errors=True)(compiled)
        setattr(network, name, compiled)
    return network


def compiling_pays(device: torch.device, num_calls: int) -> bool:
    """Whether torch.compile was measured to save more than it costs: in long runs in bf16 on a CPU with AMX."""
    has_amx = device.type == "cpu" and torch.cpu.get_capabilities().get("amx_tile", False)
    return has_amx and num_calls >= COMPILE_FROM_CALLS and _has_compiler()


def _has_compiler() -> bool:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return False
    return True


def _compiled(function: Callable[..., Tensor], device: torch.device) -> Callable[..., Tensor]:
    from torch._inductor import config as inductor

    on_cpu = device.type == "cpu"
    compiled = torch.compile(function, dynamic=False, mode=None if on_cpu else "reduce-overhead")
    return inductor.patch(freezing=on_cpu)(compiled)  # PyTorch compiles at the first call
