"""What `prdit` does with what was typed."""

from __future__ import annotations

import os
import sys
from typing import Optional, Sequence

from .checks import check_values
from .finished import is_finished, mark_finished
from .plan import planned
from .runs import SWITCHES, Run, runs_of
from .stacks import merged
from .start import run_monai, start
from .table import ABOUT, SAMPLED_WITH, SECOND_STAGES, Command, available
from .typed import nearest, read_words

QUIET = "monai"  # `prdit monai run ...`: MONAI's own command without its noise, what torchrun starts
SOME_FAILED = 2  # exit status of a job that is done but for a few of its inputs
PIPE_CLOSED = 141  # exit status, as shells count it
_HELP = {"help", "h"}


def run(words: Sequence[str]) -> None:
    """Runs what was typed after `prdit`; ends the process with one line and status 1 for what is not right in it."""
    try:
        _run(list(words))
    except ValueError as error:
        if sys.excepthook is not sys.__excepthook__:  # the bundle's own, which a run has set
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(PIPE_CLOSED)
    except KeyboardInterrupt:
        if sys.excepthook is not sys.__excepthook__:
            raise
        print("\nstopped", file=sys.stderr)
        sys.exit(130)


def _run(words: list[str]) -> None:
    commands, name = available(), words.pop(0) if words else ""
    plan = name == "plan" and bool(words)
    if plan:
        name = words.pop(0)
    if name in ("", "plan", "help", "--help", "-h"):
        return print(_listed(commands))
    if name == QUIET:
        return run_monai(words)
    if name == "doctor":
        from .doctor import examine

        sys.exit(1 if examine() else 0)
    if name not in commands:
        raise ValueError(f"no command {name}{nearest(name, [*commands, *ABOUT])}  (prdit lists them)")
    command, typed = commands[name], read_words(words, SWITCHES)
    if _HELP & typed.settings.keys():
        from .help import print_command

        return print_command(name, command, typed)
    show, verbose = (typed.take(switch) is not None for switch in SWITCHES)
    runs = runs_of(name, command, typed)
    if not show:
        check_values(runs)
    plan = plan or runs[-1].settings.get("dry_run", "False").lower() in ("true", "1", "yes", "on")
    runs = planned(runs) if plan else runs
    if show:
        return print("\n".join(one.line() for one in runs))
    status = max([_status(one, plan, verbose) for one in runs])
    if command.said and not plan:
        print(command.said)
    if command.then and not plan and os.path.exists(os.path.expanduser(_filled(command.made, runs[-1])) or os.curdir):
        print(f"next: {_next(command, runs[-1])}")
    if status:
        sys.exit(status)


def _next(command: Command, last: Run) -> str:
    """What to type after a run: what trains stage 2 after stage 1 alone, which draws nothing; how weights are sampled."""
    stage = last.stage or merged(last.stack).get("stage", "")
    if stage in SECOND_STAGES:
        places = [f"--{name} {last.settings[name]}" for name in ("dataset_dir", "ckpt_dir") if name in last.settings]
        return " ".join(["prdit train", *places, SECOND_STAGES[stage]])
    return _filled(command.then, last) + SAMPLED_WITH.get(stage, "")


def _listed(commands: dict[str, Command]) -> str:
    sentences = {**{name: one.sentence for name, one in commands.items()}, **ABOUT}
    lines = [f"  {name:14s}{sentence}" for name, sentence in sentences.items()]
    return "\n".join([*lines, "prdit COMMAND --help lists its settings; --show prints MONAI's command for it."])


def _status(one: Run, plan: bool, verbose: bool) -> int:
    """Starts a run, unless it is finished; 0, or 2 where it did its job but for some of its inputs."""
    if one.title:
        print(one.title)
    if not plan and is_finished(one):
        print(f"finished already: {one.weights()}; another setting, such as more --max_steps, trains on")
        return 0
    code: Optional[object] = 0
    try:
        code = start(one, verbose)
    except SystemExit as end:
        code = end.code
    if code not in (None, 0, SOME_FAILED):
        sys.exit(code)  # type: ignore[arg-type]
    if not plan:
        mark_finished(one)
    return SOME_FAILED if code == SOME_FAILED else 0


def _filled(text: str, last: Run) -> str:
    """Text with the settings of a run in its braces."""
    return text.format_map({**merged(last.stack), **last.settings, "weights": last.weights()})
