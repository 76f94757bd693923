"""Runs of several processes, on one machine or many."""

from __future__ import annotations

import os
from typing import Any, Optional

import ignite.distributed as idist
import torch

_NUMBERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT")


def join_processes(backend: Optional[str] = None, **settings: Any) -> None:
    """Joins the processes that `torchrun` started, or Slurm's `srun`.

    Through Ignite, not torch.distributed: a saver that only rank 0 has would wait for ever for Ignite's first
    collective call.

    Args:
        backend: None is nccl where there are GPUs, else gloo.
        settings: of `ignite.distributed.initialize`.

    Raises:
        ValueError: in one line, when nothing started several processes.
    """
    wrong = [name for name in _NUMBERS if not os.environ.get(name, "").isdecimal()]
    if not os.environ.get("MASTER_ADDR"):
        wrong.append("MASTER_ADDR")
    if wrong and "SLURM_PROCID" not in os.environ:
        raise ValueError(
            f"several processes are started by torchrun, which sets {', '.join(wrong)}: torchrun --standalone "
            "--nproc_per_node=2 -m monai.bundle ...; for one process leave multi_gpu.yaml out"
        )
    idist.initialize(backend or ("nccl" if torch.cuda.is_available() else "gloo"), **settings)
