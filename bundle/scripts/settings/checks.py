"""The first thing that every config runs: all its settings are checked, and converted, before anything is built."""

from __future__ import annotations

import ast
import difflib
import sys
from types import FrameType, MappingProxyType
from typing import Any, Callable, Iterator, Mapping, NamedTuple, Optional

import monai.bundle
from fire.parser import DefaultParseValue
from monai.bundle import ConfigComponent, ConfigParser, ReferenceResolver
from monai.bundle.utils import EXPR_KEY

from ..errors import is_bad_input, report_errors_in_one_line, root_cause
from ..stack import check_stack
from .description import Setting
from .help import print_help
from .reach import described_settings, is_reference, reached, require_effect, require_one


class Typed(NamedTuple):
    """What `monai.bundle.run` was called with: the config files, and settings by name as Fire read them."""

    config_files: Any
    settings: dict[str, Any]


def check_settings() -> None:
    """Checks the stack of config files and every setting of the config that is running, and converts the settings.

    `--help` prints the settings instead, and ends the process.

    Raises:
        ValueError: in one line that names the setting, what was given and what would be right.
    """
    parser = _running_parser()
    config: dict[str, Any] = parser.config  # type: ignore[assignment]
    check_stack(config)
    described = described_settings(config)
    typed = _typed(parser)
    if typed is not None:
        if {"help", "h"} & typed.settings.keys():
            print_help(config, {name: described[name] for name in described if name in reached(config)})
            raise SystemExit(0)
        _require_known(typed.settings, {**ConfigParser.load_config_files(typed.config_files), **described})
        require_effect(typed.settings, config)
        _restore_text(parser, typed.settings, described)
        given = [described[name] for name, value in typed.settings.items() if name in described and value != "$None"]
        _put(parser, {one.instead_of: None for one in given if one.instead_of and one.instead_of not in typed.settings})
    convert_settings(parser, described, typed.settings if typed is not None else {})
    if typed is not None:
        require_one(typed.settings, described)


def require_base() -> None:
    """What an overlay adds to the run of the file that it lies over, and all that it runs alone.

    Raises:
        ValueError: in one line, when it is alone.
    """
    report_errors_in_one_line()
    check_stack(_running_parser().config)  # type: ignore[arg-type]


def _frames(found: Callable[[FrameType], bool]) -> Iterator[FrameType]:
    frame: Optional[FrameType] = sys._getframe(1)
    while frame is not None:
        if found(frame):
            yield frame
        frame = frame.f_back


def _running_parser() -> ConfigParser:
    """The parser that is resolving this call. MONAI hands a component everything but its parser."""
    return next(_frames(lambda frame: isinstance(frame.f_locals.get("self"), ConfigParser))).f_locals["self"]


def _typed(parser: ConfigParser) -> Optional[Typed]:
    """What the user typed to run the config; None where Python made the workflow."""
    for frame in _frames(lambda frame: frame.f_code is monai.bundle.run.__code__):
        local = frame.f_locals
        if local["workflow"].parser is not parser:
            continue
        for name in ("init_id", "final_id"):
            if local[name] is not None and local[name] not in parser:
                raise ValueError(
                    f"{local[name]} is no {name} of the config; several config files are given as "
                    "--config_file \"['train.yaml','train_global.yaml']\""
                )
        of_file = ConfigParser.load_config_file(local["args_file"]) if local["args_file"] else {}
        typed = {name: of_file[name] for name in of_file if name not in frame.f_code.co_varnames} | local["override"]
        files = local["config_file"] if local["config_file"] is not None else of_file.get("config_file")
        given = {name: "$None" if value == "null" else value for name, value in typed.items() if value is not None}
        return Typed(files, given)
    return None


def _require_known(typed: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    for name in typed:
        first = ReferenceResolver.split_id(name)[0]
        if first not in known:
            near = difflib.get_close_matches(first, known, 1)
            hint = f"did you mean {near[0]}?" if near else "add --help to see all settings"
            raise ValueError(f"no setting {first} in these config files; {hint}")


def _restore_text(parser: ConfigParser, typed: Mapping[str, Any], described: Mapping[str, Setting]) -> None:
    """Puts text back as it was typed: Fire makes numbers of `2025` and `1e3`, and MONAI `::` of `#`."""
    texts = [name for name in typed if name in described and described[name].kind.verbatim]
    _put(
        parser,
        {
            name: _as_typed(name, typed[name], described[name].kind.many)
            for name in texts
            if not is_reference(typed[name])
        },
    )


def _as_typed(name: str, value: Any, many: bool) -> Any:
    """The words after `--name` on the command line; the value as it is where they are quoted, several, or not there."""
    words = sys.argv[1:]
    for index, word in enumerate(words):
        flag, equals, rest = word.partition("=")
        if word.startswith("-") and flag.lstrip("-").replace("-", "_") == name:
            alone = value is True and (index + 1 == len(words) or words[index + 1].startswith("-"))
            text = rest if equals else "" if alone else words[index + 1]
            break
    else:
        return value
    is_many = many and text.startswith(("[", "(", "{")) and isinstance(value, (list, tuple, dict))
    if is_many:
        return DefaultParseValue(text)  # as it was before MONAI changed it in place
    return value if text.startswith(("'", '"')) else text


def literal(value: Any) -> Any:
    """A value that MONAI leaves as it is: text with its separator or sign of a reference becomes an expression."""
    text = ascii(value)
    if not isinstance(value, (str, list, tuple, dict)) or not set("#@") & set(text):
        return value
    try:
        ast.literal_eval(text)
    except (ValueError, SyntaxError):  # it holds what MONAI has built
        return value
    return EXPR_KEY + text.replace("#", "\\x23").replace("@", "\\x40")


def convert_settings(
    parser: ConfigParser, described: Mapping[str, Setting], typed: Mapping[str, Any] = MappingProxyType({})
) -> None:
    """Converts every described setting of a config in place: plain values first, then what refers to them.

    Raises:
        ValueError: in one line that names the setting.
    """
    config: dict[str, Any] = parser.config  # type: ignore[assignment]
    values = [name for name in described if not ConfigComponent.is_instantiable(config[name])]  # those check themselves
    references = [name for name in values if is_reference(config[name])]
    plain = sorted(
        set(values) - set(references), key=lambda name: (config[name] is None, name)
    )  # what lacks comes last
    _put(parser, {name: described[name].kind.checked(name, config[name]) for name in plain})
    used = reached(config)
    # one that refers to another refers to all that the other does: what is referred to is checked first
    for name in sorted(used.intersection(references), key=lambda name: (len(reached(config, [name])), name)):
        value = _evaluated(parser, name, typed)
        converted = described[name].kind.checked(name, value)
        if _differ(converted, value):
            _put(parser, {name: converted})


def _evaluated(parser: ConfigParser, name: str, typed: Mapping[str, Any]) -> Any:
    """The value of a setting that MONAI has to evaluate; ValueError in one line where it cannot, and the user typed it."""
    try:
        return parser.get_parsed_content(name)
    except Exception as error:  # an expression can raise anything
        cause = root_cause(error)
        if name not in typed or is_bad_input(cause):
            raise
        raise ValueError(
            f"{name} {typed[name]!r} cannot be evaluated ({type(cause).__name__}), as MONAI does with all that starts with $ "
            "or @; write ./ before a path that does"
        ) from None


def _differ(one: Any, other: Any) -> bool:
    return type(one) is not type(other) or one != other


def _put(parser: ConfigParser, values: Mapping[str, Any]) -> None:
    """Puts values into a config where they are others than before; what MONAI has built until now is built anew."""
    config: dict[str, Any] = parser.config  # type: ignore[assignment]
    changed = {name: literal(value) for name, value in values.items() if _differ(value, config[name])}
    if changed:
        config.update(changed)
        parser.parse(reset=True)
