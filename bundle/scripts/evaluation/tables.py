"""The paper's tables: their rows are found, sampled, measured, and set beside the paper's own numbers; and its figures."""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Any, Mapping, Optional, Sequence

from monai.bundle import ConfigParser

from ..data.pictures import stacked
from ..errors import bundle_root, require_writable
from ..files import require_own, whole_file, write_json, write_text
from ..hardware import device_name
from ..inferers.generator import Item
from ..networks.card import read_card
from ..words import voxels_in_words
from .models import PAPER, Model, PaperSampler, Place, overlay_of, require_some, sets_of
from .paper_figures import draw_figure
from .sweep import run_configs

MARK = "made by prdit tables"
_TIMES = 6  # the table whose volumes are timed, and not compared
_LATEX = {"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "±": r"$\pm$", "·": r"$\cdot$",
          "²": "$^2$", "³": "$^3$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "–": "--", "<": "$<$", ">": "$>$"}  # fmt: skip
Cells = dict[str, dict[str, Any]]  # of a row, by column: 'text', and the numbers that it shows


class Paper:
    """Tables and figures of the paper from data sets and folders of weights and generated volumes.

    Args:
        tables: their numbers.
        figures: likewise.
        data_sets: by name, see `Place`.
        sampler: of weights.
        output_dir: of `table_N.md`, `.tex` and `.json`, of `figure_N.png`, and of what they are made from, which the next run
            finds.
        evaluating: settings of evaluate.yaml.
        critics: settings of wscore.yaml.
        num_seeds: of sampling.
        num_timed: volumes whose sampling is timed, one by one.

    Raises:
        ValueError: in one line, when there is nothing to make, one has no row, or a file of others is in the way.
    """

    def __init__(
        self,
        tables: Sequence[int],
        figures: Sequence[int],
        data_sets: Mapping[str, Mapping[str, Optional[str]]],
        sampler: PaperSampler,
        output_dir: str,
        evaluating: Mapping[str, Any],
        critics: Mapping[str, Any],
        num_seeds: int,
        num_timed: int,
    ) -> None:
        self.sampler, self.evaluating, self.critics = sampler, evaluating, critics
        self.num_seeds, self.num_timed = num_seeds, num_timed
        self.places = [Place(name, **one) for name, one in data_sets.items()]
        if not tables and not figures:
            numbers = (f"{what} {', '.join(map(str, PAPER[what]))}" for what in ("tables", "figures"))
            raise ValueError(f"give --tables or --figures, such as --tables 1; there are {' and '.join(numbers)}")
        if sampler.num_samples < 2 and set(tables) - {_TIMES}:
            raise ValueError(
                f"tables compare sets of volumes: num_samples must be 2 or more, got {sampler.num_samples}"
            )
        self.tables = {number: PAPER["tables"][number] for number in tables}
        self.of_tables = {number: self._places(f"table {number}", table) for number, table in self.tables.items()}
        self.of_figures = {number: self._places(f"figure {number}", PAPER["figures"][number]) for number in figures}
        self.folder = require_writable(output_dir, "output_dir")
        for number in tables:
            for end in ("md", "tex", "json"):
                require_own(self.folder / f"table_{number}.{end}", MARK, "output_dir")

    def _places(self, what: str, content: Mapping[str, Any]) -> list[Place]:
        names = content.get("data_sets", ["LIDC-IDRI"])
        return require_some(what, content["rows"], [place for place in self.places if place.name in names])

    def run(self) -> None:
        """Makes each table and figure, and prints the tables."""
        for number, table in self.tables.items():
            found = {place.name: self.results(number, table, place) for place in self.of_tables[number]}
            text = as_markdown(number, table, found)
            write_json(self.folder / f"table_{number}.json", {"mark": MARK, "table": number, **table, "found": found})
            write_text(self.folder / f"table_{number}.md", f"<!-- {MARK} -->\n{text}")
            write_text(self.folder / f"table_{number}.tex", f"% {MARK}\n{as_latex(number, table, found)}")
            print(f"\n{text}\n-> {self.folder}/table_{number}.md, .tex and .json")
        for number, places in self.of_figures.items():
            pictures = [draw_figure(number, place, self.sampler, self.evaluating) for place in places]
            path = self.folder / f"figure_{number}.png"
            with whole_file(path) as file:
                stacked(pictures, across=True).save(file, format="png")
            lacking = [f"\nmissing, {place.name}: {row}: {how}" for place in places
                       for row, how in place.missing(PAPER["figures"][number]["rows"]).items()]  # fmt: skip
            print(f"figure {number} -> {path}{''.join(lacking)}")

    def results(self, number: int, table: Mapping[str, Any], place: Place) -> dict[str, Any]:
        """Of one data set: 'rows' with their cells, 'missing' rows with what makes them, 'facts', 'notes'."""
        rows, columns, models = table["rows"], table.get("columns", {}), place.found(table["rows"])
        cells: dict[str, Cells] = {row: {} for row in rows}
        facts: dict[str, Any] = {"sampler": self.sampler.settings, "notes": []}
        self.sampler.notes = facts["notes"]
        if number == _TIMES:
            self.time(models, cells, facts)
        else:
            folders = {
                row: self.sampler.folders(place, rows[row], model, self.num_seeds) for row, model in models.items()
            }
            name = f"table_{number}_{place.name}"
            scores = {one: factor for one, factor in columns.items() if one.startswith(("FID", "MMD"))}
            if scores:
                self.measure(name, place, folders, scores, cells, facts)
            if "anchor" in table or not columns:
                first = {row: of_seeds[0] for row, of_seeds in folders.items()}
                self.judge(f"{name}_critics", place, first, table.get("anchor"), cells, facts)
            if "Training cost" in columns:
                self.cost(models, cells)
        return {"rows": cells, "missing": place.missing(rows), **facts}

    def measure(
        self,
        name: str,
        place: Place,
        folders: Mapping[str, Sequence[str]],
        columns: Mapping[str, float],
        cells: dict[str, Cells],
        facts: dict[str, Any],
    ) -> None:
        """FID and MMD of each row, over its seeds."""
        sets, output_dir = sets_of(folders), self.folder / name
        given = {
            "cache_dir": str(self.folder / "cache"),
            "metrics": ["FID", "MMD"],
            "num_bootstrap": 2,
            **self.evaluating,
        }
        run_configs(
            "evaluate", **given, real_dir=place.real_dir, output_dir=str(output_dir),
            generated_dirs={one: folder for folder, one in sets.items()},
        )  # fmt: skip
        report = json.loads((output_dir / "metrics.json").read_text())
        for row, of_seeds in folders.items():
            for column, factor in columns.items():
                estimates = [
                    report["distances"][sets[folder]][column.partition("·")[0].split()[0]] for folder in of_seeds
                ]
                cells[row][column] = _cell([one["value"] for one in estimates], factor)
        facts |= {"features": report["features"], "settings": report["settings"]}
        facts["sets"] = {"real": [report["sets"]["real"]]}
        facts["sets"] |= {row: [report["sets"][sets[one]] for one in of_seeds] for row, of_seeds in folders.items()}
        facts["notes"] += report["warnings"]

    def judge(
        self,
        name: str,
        place: Place,
        folders: Mapping[str, str],
        anchor: Optional[str],
        cells: dict[str, Cells],
        facts: dict[str, Any],
    ) -> None:
        """W-scores against the anchor (Table 1), or log ratios of all pairs (Table 11)."""
        if len(folders) < 2 or anchor is not None and anchor not in folders:
            facts["notes"].append("no W-score: it needs " + (f"{anchor} and another row" if anchor else "two rows"))
            return
        output_dir, seeds = self.folder / name, self.critics["num_seeds"] or (3 if anchor else 4)  # the paper's
        given = {**self.evaluating, **self.critics, "num_seeds": seeds, "critics": "anchor" if anchor else "pairs"}
        run_configs(
            "evaluate", "wscore", **given, real_dir=place.real_dir, output_dir=str(output_dir),
            generated_dirs=dict(folders), anchor=anchor or next(iter(folders)),
        )  # fmt: skip
        found = json.loads((output_dir / "wscore.json").read_text())
        for row in folders:
            if anchor:
                cells[row]["W-score ↓"] = {"text": "1.00"} if row == anchor else _stated(found["ratio"].get(row))
            else:
                for other, score in found["log_ratio"][row].items():
                    cells[row][other] = {"text": "0"} if row == other else _stated(score)
        facts |= {"critics": {**found["settings"], "num_seeds": seeds}, "judged": found["num_volumes"]}
        facts["notes"] += found.get("notes", [])

    def cost(self, models: Mapping[str, Model], cells: dict[str, Cells]) -> None:
        """Hours that training took, as the weights' JSON says."""
        for row, model in models.items():
            if model.weights is not None:
                card = read_card(model.weights)
                training = (card.model_extra or {}).get("training", {})
                kinds = training.get("computed_in", ["?"])
                unit = "GPUh" if all("cuda" in kind for kind in kinds) else "CPUh"
                hours, total = training.get("device_hours"), card.device_hours
                text = "not logged" if hours is None else f"{hours:.3g} {unit}"
                if total is not None and total > hours:
                    text += f" ({total:.3g} with the weights below)"
                cells[row]["Training cost"] = {
                    "text": text,
                    "hours": hours,
                    "hours_in_all": total,
                    "computed_in": kinds,
                }

    def time(self, models: Mapping[str, Model], cells: dict[str, Cells], facts: dict[str, Any]) -> None:
        """Seconds of whole volumes, one at a time, after one that is not counted."""
        for row, model in models.items():
            if model.weights is None:
                facts["notes"].append(f"{row} is timed by its own code")
            else:
                seconds, facts["timed_on"] = self.seconds(model.weights)
                spread = f"{statistics.stdev(seconds):.4f}" if len(seconds) > 1 else "–"
                cells[row]["Mean (s)"] = {"text": f"{statistics.mean(seconds):.4f}", "values": seconds}
                cells[row]["Std (s)"] = {"text": spread}

    def seconds(self, weights: Path) -> tuple[list[float], str]:
        """Of each volume, and where they were made."""
        parser, device = ConfigParser(), self.sampler.device
        parser.read_config(
            [str(Path(bundle_root()) / "configs" / f"{name}.yaml") for name in ("inference", overlay_of(weights))]
        )
        steps = self.sampler.steps_of(weights)
        parser.update({"ckpt_path": str(weights), "device": device, "num_inference_steps": steps})
        parser.update({"network::num_calls": self.num_timed * steps})
        parser.parse(True)
        generator, computed_in = (parser.get_parsed_content(name) for name in ("generator", "computed_in"))
        seconds = []
        for seed in range(self.num_timed + 1):
            start = time.perf_counter()
            generator.sample([Item(seed)])  # looks at the result, and so waits for the GPU
            seconds.append(time.perf_counter() - start)
        seen = parser.get_parsed_content("card").data
        return (
            seconds[1:],
            f"{device_name(device)}, {computed_in['precision']}, {voxels_in_words(seen.grid, seen.sizes_mm)}",
        )


def _cell(values: Sequence[Optional[float]], factor: float) -> dict[str, Any]:
    """A mean and its standard deviation over seeds."""
    numbers = [factor * value for value in values if value is not None]
    if len(numbers) < len(values) or not numbers:
        return _stated({"mean": None, "std": None})
    spread = statistics.stdev(numbers) if len(numbers) > 1 else None
    return _stated({"mean": statistics.mean(numbers), "std": spread, "values": numbers})


def _stated(score: Optional[Mapping[str, Any]]) -> dict[str, Any]:
    """A 'mean' and its 'std' with their text."""
    if score is None or score["mean"] is None:
        return {"text": "undefined", **(score or {})}
    spread = "" if score["std"] is None else f" ± {score['std']:.{2 if score['std'] < 100 else 3}g}"
    left_out = score.get("num_undefined", 0)
    counted = f" ({score['num_seeds']} of {score['num_seeds'] + left_out})" if left_out else ""
    return {"text": f"{score['mean']:.4g}{spread}{counted}", **score}


def _grid(table: Mapping[str, Any], names: Sequence[str], found: Optional[Mapping[str, Any]]) -> list[list[str]]:
    """Head and rows of a table as text, of what was found or of the paper's own numbers."""
    columns = list(table.get("columns", table["rows"]))
    several = len(names) > 1
    lines = [["", *(f"{name}: {column}" if several else column for name in names for column in columns)]]
    for row, spec in table["rows"].items():
        if found is None:
            lines.append([row, *(text for name in names for text in spec[name])])
        else:
            cells = [found[name]["rows"][row].get(column, {"text": "–"}) for name in names for column in columns]
            lines.append([row, *(cell["text"] for cell in cells)])
    return lines


def _below(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What is said under a table: numbers of volumes, features, hashes, sampler, what is missing, notes."""
    lines = []
    for name, one in found.items():
        for row, sets in one.get("sets", {}).items():
            counts, hashes = (dict.fromkeys(each[key] for each in sets) for key in ("num_volumes", "sha256"))
            sizes = " or ".join(map(str, counts))
            lines.append(f"{name}, {row}: N = {sizes}, sha256 {' '.join(text[:12] for text in hashes)}")
        if "features" in one:
            seen = voxels_in_words(one["settings"]["grid"], one["settings"]["field_of_view_mm"])
            lines.append(
                f"compared at {seen}; features: {one['features']['label']}, sha256 {str(one['features']['sha256'])[:12]}"
            )
        if "critics" in one:
            settings = {key: value for key, value in one["critics"].items() if not isinstance(value, dict)}
            lines.append("critics: " + ", ".join(f"{key} {value}" for key, value in settings.items()))
        if "timed_on" in one:
            times = {len(cells["Mean (s)"]["values"]) for cells in one["rows"].values() if cells}
            lines.append(f"{max(times)} volumes each, on {one['timed_on']}")
        sampler = {key: value for key, value in one["sampler"].items() if value is not None}
        lines.append("sampler: " + ", ".join(f"{key} {value}" for key, value in sampler.items()))
        lines += [f"missing, {name}: {row}: {how}" for row, how in one["missing"].items()]
        lines += [f"note: {note}" for note in one["notes"]]
    return list(dict.fromkeys(lines))


def _own(table: Mapping[str, Any]) -> str:
    return "The paper's own numbers" + (f" ({table['paper']})" if "paper" in table else "")


def as_markdown(number: int, table: Mapping[str, Any], found: Mapping[str, Mapping[str, Any]]) -> str:
    """A table, the paper's own, and what is said under them."""
    names = list(found)
    parts = [
        f"## Table {number}: {table['title']}",
        _lines(_grid(table, names, found)),
        "\n".join(f"- {one}" for one in _below(found)),
    ]
    return "\n\n".join([*parts, f"{_own(table)}:", _lines(_grid(table, names, None))]) + "\n"


def _lines(grid: Sequence[Sequence[str]]) -> str:
    """Rows of text as Markdown, in columns that line up."""
    widths = [max(len(line[i]) for line in grid) for i in range(len(grid[0]))]
    rule = "|".join(["", *("-" * (width + 2) for width in widths), ""])
    rows = ["| " + " | ".join(text.ljust(width) for text, width in zip(line, widths)) + " |" for line in grid]
    return "\n".join([rows[0], rule, *rows[1:]])


def as_latex(number: int, table: Mapping[str, Any], found: Mapping[str, Mapping[str, Any]]) -> str:
    """The same as `as_markdown`, for LaTeX without packages."""
    names = list(found)
    tabulars = []
    for grid in (_grid(table, names, found), _grid(table, names, None)):
        lines = [" & ".join(map(_escaped, line)) + r" \\" for line in grid]
        body = "\n".join([lines[0], r"\hline", *lines[1:]])
        tabulars.append(
            f"\\begin{{tabular}}{{l{'c' * (len(grid[0]) - 1)}}}\n\\hline\n{body}\n\\hline\n\\end{{tabular}}"
        )
    below = r" \\ ".join(map(_escaped, _below(found)))
    return (
        f"\\begin{{table}}\n\\centering\n\\caption{{{_escaped(table['title'])} (Table {number} of the paper).}}\n{tabulars[0]}\n\n"
        f"\\medskip\n{_escaped(_own(table))}:\n\n{tabulars[1]}\n\n\\medskip\n\\footnotesize {below}\n\\end{{table}}\n"
    )


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)
