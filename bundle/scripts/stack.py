"""Which config files go together, in which order, in how many processes, and with whose code.

Every file in `configs/` has a mark of its own, a key `stack_NAME` that nothing reads but this module:

    stack_train_global: {layer: 1, over: train}

- `layer`: files are merged in rising layers, since a later file replaces settings of those before it. Files of one layer
  exclude each other; layer 0 are the files that stand alone.
- `over`: the file, or one of the files, that it is an overlay of.
- `without`: files that would undo what it sets, or do nothing beside it.
- `stage`: `model` is for stage 2 alone, where `prdit` trains both.
- `processes`: under `torchrun`: `multi_gpu`, with that overlay; `any`, shares its work by itself; `one`, none but one.

MONAI merges the files into one dictionary, in which the order of the marks is that of the files.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, Mapping

MARK = "stack_"
_CODE = Path(__file__).resolve().parent


def check_stack(config: Mapping[str, Any]) -> None:
    """Refuses a stack of config files that would quietly do something else than its files say.

    Args:
        config: the merged configs, as they were read, keys in the order of the files. One without marks is of the
            user's own and is not checked.

    Raises:
        ValueError: in one line, for files that do not go together or not in this order, a missing multi_gpu.yaml under
            torchrun, or code of another bundle in this process.
    """
    marks = {name.removeprefix(MARK): mark for name, mark in config.items() if name.startswith(MARK)}
    _check_code()
    if marks:
        check_order(marks)
        _check_processes(marks)


def check_order(marks: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuses files, by name with their marks and in the order they are merged, that do not go together or not so."""
    order = sorted(marks, key=lambda name: marks[name]["layer"])  # files of one layer stay as they are
    for name, mark in marks.items():
        over = mark.get("over", [])
        bases = [over] if isinstance(over, str) else over
        if bases and not any(base in marks for base in bases):
            raise ValueError(
                f"{name}.yaml is an overlay of {' or '.join(f'{base}.yaml' for base in bases)}, which must come before it: "
                f"--config_file \"['{bases[0]}.yaml','{name}.yaml']\""
            )
    alike = [pair for pair in zip(order, order[1:]) if marks[pair[0]]["layer"] == marks[pair[1]]["layer"]]
    undone = [(name, other) for name in marks for other in marks[name].get("without", []) if other in marks]
    for first, second in [*alike, *undone]:
        raise ValueError(f"{first}.yaml and {second}.yaml exclude each other; take one of them")
    if order != list(marks):
        raise ValueError(
            f"config_file has {_files(marks)}, but later files replace settings of those before them: the order must "
            f"be {_files(order)}"
        )


def _files(names: Any) -> str:
    return ", ".join(f"{name}.yaml" for name in names)


def _check_processes(marks: Mapping[str, Mapping[str, Any]]) -> None:
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):  # torchrun sets them
        if not os.environ.get(name, "1").isdecimal():
            raise ValueError(f"{name} in the environment must be a whole number, got {os.environ[name]!r}; unset it")
    world_size = os.environ.get("WORLD_SIZE", "1")
    if world_size == "1":
        return
    kinds = [mark["processes"] for mark in marks.values() if "processes" in mark]
    if "one" in kinds:
        raise ValueError(f"{_files(marks)} works in one process: start it with python, not with torchrun")
    if "multi_gpu" in kinds and "multi_gpu" not in marks:
        raise ValueError(
            f"there are {world_size} processes, each of which would do all of the work: put multi_gpu.yaml last in "
            "config_file, or start it with python instead of torchrun"
        )


def _check_code() -> None:
    """MONAI puts the folder of the config's bundle second in `sys.path`, behind the current folder or a script's."""
    expected = Path(sys.path[1], "scripts") if len(sys.path) > 1 else _CODE
    if (expected / "__init__.py").is_file() and expected.resolve() != _CODE:
        raise ValueError(
            f"the configs are of the bundle in {expected.parent}, the code that runs is of that in {_CODE.parent}: start "
            "from another folder, and each bundle in a process of its own"
        )
