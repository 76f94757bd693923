"""What the machine refuses, in words for the user: full disks, missing rights, too little memory, processes that died."""

from __future__ import annotations

import errno
import os
import re
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, Optional, Union

import torch

_ROOM = "make room and repeat the command"
_RIGHTS = "choose another place, or change the permissions"
_ADVICE = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EFBIG: _ROOM,
    errno.EROFS: _RIGHTS,
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.EISDIR: "a file is needed here: choose another name, or move the folder away",
    errno.EEXIST: "choose another name, or move it away",
    errno.ENOTDIR: "a folder is needed here: choose another name, or move the file away",
    errno.ENOTEMPTY: "a file is needed here: choose another name, or move the folder away",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "raise the limit (ulimit -n), or lower num_workers",
    errno.EADDRINUSE: "another run has this port: use torchrun --standalone, or another --master_port",
    errno.EIO: "the disk or the network drive failed; repeat the command when it works",
}
_LESS = "lower batch_size, grid, cache_gb or num_workers"
_LESS_ON_GPU = (
    "lower batch_size or grid; for training set activation_checkpointing to true, for sampling give memory_gb"
)
_LESS_SHARED = "shared memory (/dev/shm) is not enough: lower num_workers, or give the container more (--shm-size)"
# what PyTorch says in a RuntimeError, and what it means; the first match holds
_RUNTIME_ERRORS = (
    (r"[Ss]hared memory|unable to (write to file|mmap) .*torch_|Bus error", _LESS_SHARED),
    (
        r"DataLoader worker .*(killed|exited)",
        f"a process that loads data was killed, likely for want of memory: {_LESS}",
    ),
    (r"DefaultCPUAllocator|Storage size calculation overflowed", f"the memory of this machine is not enough: {_LESS}"),
    (r"out of memory", f"the memory of the GPU is not enough: {_LESS_ON_GPU}"),
    (r"inline_container\.cc.*unexpected pos", f"a file could not be written whole: {_ROOM}"),
    (
        r"gloo/transport|NCCL",
        "another process of this run ended or cannot be reached; the reason is above, or in its own output",
    ),
)


def machine_fault(error: BaseException) -> Optional[str]:
    """The line for the user about what the machine refused; None for an error of another kind."""
    if isinstance(error, OSError) and error.errno is not None:
        file = error.filename2 or error.filename  # of a renaming, the name that was wanted
        advice = _ADVICE.get(error.errno)
        if file is None and advice is None:
            return None
        return (f"{file}: " if file is not None else "") + str(error.strerror) + (f"; {advice}" if advice else "")
    if isinstance(error, MemoryError):
        return f"the memory of this machine is not enough: {_LESS}"
    if isinstance(error, torch.distributed.DistError):
        line = f"the processes of this run cannot reach each other: {str(error).splitlines()[0]}"
        return f"{line}; {_ADVICE[errno.EADDRINUSE]}" if "EADDRINUSE" in line else line
    if type(error).__module__.partition(".")[0] == "mlflow":
        return f"MLflow at tracking_uri: {str(error).splitlines()[0]}"
    if isinstance(error, RuntimeError):
        return next((line for pattern, line in _RUNTIME_ERRORS if re.search(pattern, str(error))), None)
    return None


@contextmanager
def written(path: Union[str, Path]) -> Iterator[None]:
    """Names a file in the errors of writing it: a full disk does not say which, and PyTorch not even that it was full.

    Raises:
        OSError: with the path as its file name.
        KeyboardInterrupt: of a stop amid the writing, which PyTorch covers with an error of a file cut off.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise error.__context__
        cause = error if isinstance(error, OSError) else error.__context__  # PyTorch's covers that of the file
        number = cause.errno if isinstance(cause, OSError) else None
        if number is None and re.search(r"inline_container|iostream|\d written", str(error)):
            number = errno.ENOSPC
        if number is None:
            raise
        file = getattr(cause, "filename", None)  # in the same folder it is a temporary name, which tells nothing
        where = path if file is None or Path(file).parent == Path(path).parent else file
        raise OSError(number, os.strerror(number), str(where))
