"""What a person sees: progress on standard error, tables on standard output, and the closing words.

Colour and drawing follow rich's rules: none with ``NO_COLOR``, plain lines where the output is not a terminal.
"""

from __future__ import annotations

import datetime
import math
import statistics
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.table import Table
from rich.text import Text

from edgecompile import search
from edgecompile.bundle import Manifest, TriedCandidate
from edgecompile.store import WorkFolder
from edgecompile.types import Accuracy, InstructionCount, Measurement, Ratio, TensorSpec

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.style import StyleType

    from edgecompile.bench import Sustained
    from edgecompile.profiles import DeviceProfile

_STATUS_STYLE = {"met": "bold green", "predicted": "bold yellow", "not met": "bold red"}
_STATUS_WORDS = {"met": "met (measured)", "predicted": "predicted (not measured)", "not met": "not met"}


class Face:
    """A `edgecompile.progress.Progress` on the terminal: one line a stage, with the time left where it is known."""

    def __init__(self, *, quiet: bool = False) -> None:
        # Names come from foreign files: ``[/bold]`` and ``:smile:`` in them are only characters.
        self.err = Console(stderr=True, highlight=False, markup=False, emoji=False)
        self.out = Console(highlight=False, markup=False, emoji=False)
        self._quiet = quiet

    @contextmanager
    def stage(self, title: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        if self._quiet:
            yield lambda steps: None
        elif not self.err.is_terminal:
            self.err.print(plain(f"{title} ..."))
            yield lambda steps: None
        else:
            with self._bar(total) as bar:
                task = bar.add_task(title, total=total)
                yield lambda steps: bar.advance(task, steps)
                bar.update(task, total=total or 1, completed=total or 1)

    def _bar(self, total: int | None) -> RichProgress:
        columns = [SpinnerColumn(finished_text="[green]✓"), TextColumn("{task.description:34}", markup=False)]
        if total is not None:
            columns += [BarColumn(bar_width=16), MofNCompleteColumn(), TimeRemainingColumn(compact=True)]
        return RichProgress(*columns, TimeElapsedColumn(), console=self.err)

    def note(self, text: str) -> None:
        if not self._quiet:
            self.err.print(plain(f"note: {text}", style="dim"))

    def warn(self, text: str) -> None:
        self.err.print(Text.assemble(("warning: ", "yellow"), plain(text)))

    def gap(self) -> None:
        """An empty line between what was done and what came of it, where somebody looks at both."""
        if self.err.is_terminal and not self._quiet:
            self.err.print()

    def print(self, *renderables: RenderableType) -> None:
        for renderable in renderables:
            self.out.print(renderable)


# --------------------------------------------------------------------------------------------------- figures


def milliseconds(value: float) -> str:
    """Three significant digits, never an exponent: ``0.00407``, ``0.123``, ``4.56``, ``78.9``, ``1234``."""
    if value <= 0:
        return "0"
    digits = 2 - math.floor(math.log10(value))
    return f"{value:.{min(max(digits, 0), 6)}f}"


def latency(measurement: Measurement | None) -> str:
    """The chosen percentile with its interval; an estimate is marked with a tilde and says so."""
    if measurement is None:
        return "-"
    low, high = milliseconds(measurement.ci_low_ms), milliseconds(measurement.ci_high_ms)
    if measurement.provenance == "estimated":
        return f"~{milliseconds(measurement.value_ms)} [{low}, {high}] est."
    return f"{milliseconds(measurement.value_ms)} [{low}, {high}]"


def size(size_bytes: int | None) -> str:
    """A size for people: ``812 B``, ``77.3 kB``, ``3.51 MB``."""
    if size_bytes is None:
        return "-"
    if size_bytes < 1000:
        return f"{size_bytes} B"
    if size_bytes < 1e6:
        return f"{size_bytes / 1e3:.1f} kB"
    return f"{size_bytes / 1e6:.2f} MB"


def accuracy(value: Accuracy | None) -> str:
    """The figure with its unit: ``91.20 %`` or ``38.1 dB``."""
    if value is None:
        return "-"
    return f"{value.value:.1f} dB" if value.metric == "SQNR" else f"{value.value:.2f} %"


def drop(value: Accuracy | None) -> str:
    """The drop in points, with its sign turned so that a loss is positive."""
    if value is None or value.drop is None:
        return "-"
    return f"{value.drop:+.2f}".replace("+0.00", "0.00").replace("-0.00", "0.00")


def count(value: int) -> str:
    """A count for people: ``812``, ``77.3 k``, ``3.51 M``, ``4.09 G``."""
    for factor, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= factor:
            return f"{value / factor:.3g}{unit}"
    return str(value)


# ---------------------------------------------------------------------------------------------------- tables


def plain(text: str, style: str = "") -> Text:
    """Text that is shown as it is: no markup, and no character that would steer the terminal."""
    shown = "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)
    return Text(shown, style=style)


class PlainTable(Table):
    """A table whose strings are text of others: never markup."""

    def add_row(self, *cells: RenderableType | None, style: StyleType | None = None, end_section: bool = False) -> None:
        """Add a row; see `rich.table.Table.add_row`."""
        shown = (plain(cell) if isinstance(cell, str) else cell for cell in cells)
        super().add_row(*shown, style=style, end_section=end_section)


def table(*columns: str, title: str | None = None, right: Collection[str] = (), fixed: Collection[str] = ()) -> Table:
    """An empty table in the one style of the program; columns named in ``right`` are right-aligned."""
    head = None if title is None else plain(title)
    made = PlainTable(title=head, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for name in columns:
        side: Literal["left", "right"] = "right" if name in right else "left"
        # Words may be folded; a name or a figure that is cut in two is of no use to anybody.
        made.add_column(plain(name), justify=side, overflow="fold", no_wrap=name in fixed)
    return made


def candidates(manifest: Manifest) -> Table:
    """The closing table: each candidate with its size, latency, accuracy on the validation part, and verdict."""
    found = [c.validation for c in manifest.candidates if c.validation is not None]
    metric = found[0].metric + (" dB" if found[0].metric == "SQNR" else " %") if found else None
    accuracies = [*([metric] if metric else []), *(["drop"] if any(a.drop is not None for a in found) else [])]
    p = f"p{manifest.budget.percentile:g} ms"
    heads = ("candidate", "size", p, "95 %")
    made = table(*heads, *accuracies, "verdict", right=("size", p, *accuracies), fixed=heads)
    own = original_on_validation(manifest)
    if own is not None:
        made.add_row("original", "", "", "", f"{own:.2f}", "", "", style="dim")
    for candidate in manifest.candidates:
        cells = _row(candidate)
        # Without data there is no accuracy, and SQNR has no drop: no column of dashes then.
        row = (*cells[:4], *cells[4 : 4 + len(accuracies)], cells[-1])
        made.add_row(*row, style="bold" if candidate.plan == manifest.plan else None)
    changed = [c for c in manifest.candidates if c.plan.steps]
    lines = [f"{c.label}: {', '.join(step.technique for step in c.plan.steps)}" for c in changed]
    lines += failures(manifest)
    if lines:
        made.caption, made.caption_justify = plain("\n".join(lines)), "left"
    return made


def failures(manifest: Manifest) -> list[str]:
    """Why candidates have no file, a line each: too long for a column."""
    return [f"{c.label} failed: {' '.join(c.failure.split())}" for c in manifest.candidates if c.failure is not None]


def verdict_words(candidate: TriedCandidate) -> str:
    """A candidate's verdict as it stands in a table; `failures` says why one has no file."""
    return "failed" if candidate.failure is not None else candidate.verdict


def original_on_validation(manifest: Manifest) -> float | None:
    """The original's figure on the part that the candidates' figures in the table are of, where there is a drop."""
    found = (c.validation for c in manifest.candidates if c.validation is not None)
    return next((a.value + a.drop for a in found if a.drop is not None and a.metric != "agreement"), None)


def _row(candidate: TriedCandidate) -> tuple[str | Text, ...]:
    ok = candidate.verdict.startswith(("met", "predicted"))
    style = ("green" if candidate.verdict.startswith("met") else "yellow") if ok else "red"
    m = candidate.measurement
    value, interval = "-", ""
    if m is not None:
        value = ("~" if m.provenance == "estimated" else "") + milliseconds(m.value_ms)
        interval = f"{milliseconds(m.ci_low_ms)}-{milliseconds(m.ci_high_ms)}"
    return (
        candidate.label,
        size(candidate.size_bytes),
        value,
        interval,
        _bare(candidate.validation),
        drop(candidate.validation),
        Text(verdict_words(candidate), style=style),
    )


#: What became of a build, by its exit code.
_OUTCOMES = {
    0: ("met (measured)", "green"),
    2: ("bad input", "red"),
    3: ("not met", "red"),
    4: ("the device failed", "red"),
    5: ("not supported", "red"),
    6: ("predicted (not measured)", "yellow"),
}


def several(rows: Sequence[tuple[str, str | None, int, str]]) -> Table:
    """What became of each target: its name, the device it was measured on, the exit code and the bundle's folder."""
    made = table("target", "budget", "exit code", "bundle", right=("exit code",))
    for target, on, code, folder in rows:
        words, style = _OUTCOMES.get(code, ("failed", "red"))
        name = target if on in (None, "local") else f"{target} on {on}"
        made.add_row(name, Text(words, style=style), str(code), folder if code in (0, 3, 6) else "-")
    return made


def _bare(value: Accuracy | None) -> str:
    """The figure without its unit, which stands in the column's head."""
    return "-" if value is None else f"{value.value:.1f}" if value.metric == "SQNR" else f"{value.value:.2f}"


def closing(manifest: Manifest, folder: str) -> list[Text]:
    """The closing lines: the verdict, the accuracy of the file that ships, what would help, and where it is."""
    verdict = manifest.verdict
    lines = [
        Text.assemble(
            (f"Budget {_STATUS_WORDS[verdict.status]}: ", _STATUS_STYLE[verdict.status]),
            verdict.text,
        )
    ]
    if manifest.accuracy is not None:
        lines.append(_accuracy_line(manifest.accuracy, manifest.original_accuracy))
    if manifest.device_accuracy is not None:
        found = manifest.device_accuracy
        lines.append(
            Text(
                f"{found.metric} on {where_it_ran(manifest)}, {found.samples} samples: {accuracy(found)}"
                f" [{found.ci_low:.2f}, {found.ci_high:.2f}]"
            )
        )
    told = predictions(manifest)
    lines += [Text(told)] if told else []
    faster = manifest.measurement.speed_up
    if faster is not None:
        words = f"{faster.value:.2f} [{faster.ci_low:.2f}, {faster.ci_high:.2f}] times the speed of the whole model in "
        lines.append(Text(f"{words}float32 with {manifest.runtime}, measured in turns"))
    lines += [Text(f"  what would help: {hint}") for hint in verdict.help]
    for engine in manifest.engines:
        lines.append(
            Text(f"Engine: TensorRT {engine.tensorrt}, {engine.gpu}, built there in {duration(engine.build_s)}")
        )
    shipped = f" ({manifest.model_file.path}, {size(manifest.model_file.size_bytes)}; report.html shows what was tried)"
    lines.append(Text.assemble("Bundle: ", (f"{folder}", "bold"), shipped))
    return lines


def where_it_ran(manifest: Manifest) -> str:
    """What the files ran on besides this machine, in words."""
    return "the device itself" if manifest.emulated is None else f"the emulated {manifest.emulated}"


def counted(manifest: Manifest) -> list[RenderableType]:
    """The instructions of the candidates, where an emulated board counted them."""
    found = [(c.label, c.instructions) for c in manifest.candidates if c.instructions is not None]
    if not found:
        return []
    first = found[0][1].per_inference
    ratios = [one.per_inference / first for _, one in found]
    return ["", *counts([label for label, _ in found], [one for _, one in found], ratios), ""]


#: Columns of the longest bar of a frontier.
_BAR = 20


def frontier(manifest: Manifest, folder: str) -> list[RenderableType]:
    """The candidates that no other beats in both latency and accuracy, where smaller models were tried: a bar each."""
    points = on_frontier(manifest)
    if len(points) < 2 or not any(c.plan.steps for c in points):
        return []
    metric = next((c.validation.metric for c in points if c.validation), "accuracy")
    p = f"p{manifest.budget.percentile:g} ms"
    made = table("frontier", p, "", metric, "drop", right=(p, metric, "drop"), fixed=("frontier", p))
    slowest = max(c.measurement.value_ms for c in points if c.measurement)
    for c in points:
        assert c.measurement is not None
        about = "~" if c.measurement.provenance == "estimated" else ""
        bar = "#" * max(1, round(_BAR * c.measurement.value_ms / slowest))
        chosen = "bold" if c.plan == manifest.plan else None
        made.add_row(
            c.label, about + milliseconds(c.measurement.value_ms), bar, _bare(c.validation), drop(c.validation),
            style=chosen,
        )  # fmt: skip
    other = next((c.label for c in points if c.plan != manifest.plan), points[0].label)
    return [made, Text(f"Take another point: the same command with --plan {folder}:{other} --out OTHER")]


def on_frontier(manifest: Manifest) -> tuple[TriedCandidate, ...]:
    """The candidates that no other beats in both latency and accuracy, the fastest first."""
    usable = [c for c in manifest.candidates if c.failure is None and c.measurement and c.validation]
    points = [(c.measurement.value_ms, search.loss(c.validation)) for c in usable if c.measurement]
    return tuple(usable[i] for i in search.pareto(points))


def predictions(manifest: Manifest) -> str | None:
    """How far smaller models were from what the table of operators promised, where they were measured."""
    errors = [
        abs(c.predicted_ms / c.measurement.ci_high_ms - 1)
        for c in manifest.candidates
        if c.predicted_ms is not None and c.measurement is not None and c.measurement.provenance == "measured"
    ]
    if not errors:
        return None
    files = f"{len(errors)} smaller models" if len(errors) > 1 else "the smaller model"
    middle = 100 * statistics.median(errors)
    words = f"The latency of {files} was predicted within {100 * max(errors):.0f} % before measuring"
    return words + (f" (median {middle:.0f} %)." if len(errors) > 1 else ".")


def _accuracy_line(found: Accuracy, original: Accuracy | None) -> Text:
    words = f"{found.metric} of the shipped file on {found.samples} evaluation samples: {accuracy(found)}"
    words += f" [{found.ci_low:.2f}, {found.ci_high:.2f}]"
    if original is not None and found.metric not in ("agreement", "SQNR"):
        words += f", original {accuracy(original)}"
    if found.drop is not None:
        words += f", drop {drop(found)}"
        if found.drop_ci_low is not None and found.drop_ci_high is not None:
            words += f" [{found.drop_ci_low:.2f}, {found.drop_ci_high:.2f}]"
    return Text(words)


def devices(profiles: Sequence[DeviceProfile], aliases: Mapping[str, str]) -> Table:
    """The device profiles, a line a runtime."""
    made = table(
        "name", "short", "runtime", "precisions", "budget", "found", right=("budget",), fixed=("name", "short")
    )
    for profile in profiles:
        short = next((alias for alias, name in aliases.items() if name == profile.name), "")
        facts = (f"{profile.default_budget_ms:g} ms", profile.origin)
        for first, runtime in zip((True, *[False] * len(profile.runtimes)), profile.runtimes, strict=False):
            head, tail = ((profile.name, short), facts) if first else (("", ""), ("", ""))
            made.add_row(*head, runtime.name, " ".join(runtime.precisions), *tail)
    return made


def learned(profile: DeviceProfile, path: str, seconds: float) -> list[RenderableType]:
    """What `device learn` found: for each table its error on nets left out, the tile, and the fixed costs."""
    heads = ("points", "nets", "error", "interval", "tile", "us an operator", "us an inference")
    made = table("learned", *heads, right=heads, fixed=("learned",))
    for one in profile.learned:
        error = "-" if one.fit.median_error is None else f"{100 * one.fit.median_error:.1f} %"
        fixed = (f"{one.corrections.operator_us:.2g}", f"{one.corrections.inference_us:.2g}")
        made.add_row(
            f"{one.runtime} {one.precision}, {one.threads}t", str(one.points), str(len(one.nets)), error,
            f"x{one.fit.interval_factor:.2f}", str(one.tile), *fixed,
        )  # fmt: skip
    lines: list[RenderableType] = [made]
    lines += [
        plain(f"error: the median on {len(profile.learned[0].nets)} small nets, each left out in turn", style="dim"),
        plain(f"Profile: {path} ({duration(seconds)}); edgecompile build MODEL --target {_as_file(path)}"),
    ]
    return lines


def _as_file(path: str) -> str:
    """A path that is not taken for a name."""
    return path if "/" in path else f"./{path}"


def work_folders(folders: Sequence[WorkFolder]) -> Table:
    """The work folders that ``cache list`` shows."""
    made = table("work folder", "size", "last used", "bundle", right=("size",))
    for folder in folders:
        used = datetime.datetime.fromtimestamp(folder.last_used_s).strftime("%Y-%m-%d %H:%M")
        made.add_row(str(folder.path), size(folder.size_bytes), used, "there" if folder.finished else "none yet")
    made.add_section()
    made.add_row("total", size(sum(folder.size_bytes for folder in folders)), "", "")
    return made


def lab(rows: Sequence[tuple[str, str, str]], folder: str, size_bytes: int) -> list[RenderableType]:
    """The emulated boards: name, core, whether it runs; and what they take on the disk."""
    made = table("board", "core (emulated)", "runs")
    for name, core, runs in rows:
        made.add_row(name, core, Text(runs, style="dim" if runs == "no" else "green"))
    return [made, plain(f"{size(size_bytes)} in {folder}", style="dim")]


def duration(seconds: float) -> str:
    """A duration for people: ``40 s``, ``3 min``, ``1.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def dry_run(
    *,
    target: str,
    measured_here: bool,
    budget_ms: float,
    rows: Sequence[tuple[str, Measurement, int]],
    time_s: float,
    disk_bytes: int,
    may_shrink: bool,
) -> list[RenderableType]:
    """What a build would try."""
    head = "estimated ms [95 %]"
    made = table("would try", "size", head, right=("size", head))
    for label, estimate, size_bytes in rows:
        made.add_row(label, f"~{size(size_bytes)}", latency(estimate).removesuffix(" est."))
    where = "this machine, so it would be measured" if measured_here else "not this machine, so it stays an estimate"
    more = " Where no file meets the budget, the search for a smaller model comes on top." if may_shrink else ""
    return [
        made,
        Text(f"{target} is {where}; the budget is {budget_ms:g} ms."),
        Text(
            f"The build would take about {duration(time_s)} and {size(disk_bytes)} of disk.{more} Nothing was written."
        ),
    ]


def bench(
    names: Sequence[str], measurements: Sequence[Measurement], ratios: Sequence[Ratio | None]
) -> list[RenderableType]:
    """Measurements side by side, with each one's ratio to the first; then what else is known of each."""
    p = f"p{measurements[0].percentile:g} ms"
    figures = (p, "95 %", "p90", "p95", "x first", "95 % ")
    made = table("file", *figures, right=(p, "p90", "p95", "x first"), fixed=figures)
    for name, m, ratio in zip(names, measurements, ratios, strict=True):
        relative = ("1", "") if ratio is None else (f"{ratio.value:.3f}", f"{ratio.ci_low:.3f}-{ratio.ci_high:.3f}")
        made.add_row(
            name,
            milliseconds(m.value_ms),
            f"{milliseconds(m.ci_low_ms)}-{milliseconds(m.ci_high_ms)}",
            *("-" if tail is None else milliseconds(tail) for tail in (m.p90_ms, m.p95_ms)),
            *relative,
        )
    facts = [plain(f"{name}: {_run_facts(m)}", style="dim") for name, m in zip(names, measurements, strict=True)]
    return [made, *facts]


def _run_facts(m: Measurement) -> str:
    """Where and how a file was measured, in words."""
    if m.environment is not None and (board := m.environment.board) is not None:
        mode = f", power mode {board.power_mode}" if board.power_mode else ""
        return f"{m.runs} runs on {m.device} with TensorRT {m.runtime_version}{mode}"
    words = f"{m.runs} runs on {m.device} with {m.runtime} {m.runtime_version}, {m.threads} "
    words += "thread" if m.threads == 1 else "threads"
    if m.delegated_operators is not None and m.total_operators is not None:
        words += f", {m.delegated_operators} of {m.total_operators} operators in the delegate"
    if m.load_ms is not None and m.cold_ms is not None:
        words += f"; loading {milliseconds(m.load_ms)} ms, first run {milliseconds(m.cold_ms)} ms"
    return words + (f", peak memory {size(m.peak_memory_bytes)}" if m.peak_memory_bytes is not None else "")


def counts(names: Sequence[str], found: Sequence[InstructionCount], ratios: Sequence[float]) -> list[RenderableType]:
    """Instructions of files side by side, with each one's ratio to the first: never a time."""
    figures = ("per inference", "x first")
    made = table("file", *figures, "runtime", title=found[0].label, right=figures, fixed=(*figures, "runtime"))
    for name, one, ratio in zip(names, found, ratios, strict=True):
        made.add_row(name, f"{one.per_inference:,}", f"{ratio:.4f}", one.runtime)
    return [made, Text("One thread. No times: fewer instructions may take longer.", style="dim")]


#: So many lines say how a latency went on.
_SUSTAINED_ROWS = 12


def sustained(found: Sustained) -> list[RenderableType]:
    """Latency against time, temperature and clock in some lines, and whether the device held its speed."""
    made = table(
        "after", "latency ms", "degrees C", "clock MHz", right=("after", "latency ms", "degrees C", "clock MHz")
    )
    count = len(found.at_s)
    for k in sorted({round(i * (count - 1) / (_SUSTAINED_ROWS - 1)) for i in range(_SUSTAINED_ROWS)}):
        celsius, mhz = found.temperature_c[k], found.frequency_mhz[k]
        made.add_row(
            f"{found.at_s[k]:.1f} s" if found.seconds < 100 else duration(found.at_s[k]),
            milliseconds(found.latency_ms[k]),
            "-" if celsius is None else f"{celsius:.1f}",
            "-" if mhz is None else f"{mhz:.0f}",
        )
    lines: list[RenderableType] = [made, Text(_held(found))]
    lines.append(
        Text(f"measured on {found.device}: {found.runtime} {found.runtime_version}, {found.threads} thread(s)")
    )
    if found.interrupted:
        lines.append(Text(f"interrupted after {duration(found.seconds)}: this is what was measured by then"))
    return lines


def _held(found: Sustained) -> str:
    part = "minute" if found.seconds >= 120 else "half"
    words = f"{found.runs} runs; median of the first {part} {milliseconds(found.first_minute_ms)} ms"
    words += f", of the last {milliseconds(found.last_minute_ms)} ms"
    if found.slow_down is not None:
        change = found.slow_down
        words += f": {change.value:.3f} [{change.ci_low:.3f}, {change.ci_high:.3f}] times"
    return words


def imported(found: Measurement, manifest: Manifest) -> list[Text]:
    """What was brought in from elsewhere, and that the verdict stays."""
    words = f"imported: p{found.percentile:g} {latency(found)} ms on {found.device}, {found.runtime}"
    budget = milliseconds(manifest.budget.latency_ms)
    keeps = "would keep" if found.counts(manifest.budget.latency_ms) else "would not keep"
    told = f"It {keeps} the budget of {budget} ms"
    if found.percentile < manifest.budget.percentile:
        told = f"The budget of {budget} ms is for p{manifest.budget.percentile:g}, of which it tells nothing"
    return [plain(words), Text(f"{told}; the verdict stays as it is: {manifest.verdict.status}.")]


def check(rows: Sequence[tuple[str, str, str, str, bool]]) -> list[RenderableType]:
    """What became of each quantity: its name, the baseline's figure, the new one's, the change, whether it is worse."""
    made = table("", "baseline", "now", "change", "verdict")
    for name, baseline, now, change, worse in rows:
        made.add_row(name, baseline, now, change, Text("worse", style="bold red") if worse else Text("ok"))
    return [made]


def inspection(
    title: str,
    facts: Sequence[tuple[str, str]],
    tensors: Sequence[tuple[str, TensorSpec]],
    operators: Sequence[tuple[str, ...]],
    operator_heads: tuple[str, ...],
    costliest: Sequence[tuple[str, ...]] = (),
    notes: Sequence[str] = (),
) -> list[RenderableType]:
    """What is in a model file: totals, inputs and outputs, operators; where they were timed, the costliest."""
    made = table("", "name", "shape", "type", "quantization")
    for kind, spec in tensors:
        q = spec.quantization
        scale = f"{q.scale[0]:.5g}, zero point {q.zero_point[0]}" if q is not None and q.scale else "-"
        made.add_row(kind, spec.name, " x ".join(map(str, spec.shape)) or "scalar", spec.dtype, scale)
    counts = table(*operator_heads, right=_FIGURES.intersection(operator_heads), fixed=(*_FIGURES, "output", "taken"))
    for row in operators:
        counts.add_row(*row, style="yellow" if "NO" in row else None)
    words = ", ".join(f"{value} {name}".strip() for name, value in facts)
    lines: list[RenderableType] = [plain(title, style="bold"), plain(words), "", made, "", counts]
    if costliest:
        lines += ["", Text("The costliest:", style="bold"), _costliest(costliest)]
    if notes:
        lines += ["", *(plain(note) for note in notes)]
    return lines


#: Heads of the columns with figures.
_FIGURES = frozenset({"nodes", "count", "MACs", "XNNPACK takes", "#", "ms", "±", "%"})


_KINDS_WIDTH, _NAME_WIDTH = 24, 26


def _shortened(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _costliest(rows: Sequence[tuple[str, ...]]) -> Table:
    """Milliseconds, share, number, kind and tensor, in 80 columns."""
    made = PlainTable(box=None, pad_edge=False, show_header=False)
    for justify in ("right", "right", "left", "left"):
        made.add_column(justify=justify, no_wrap=True)
    made.add_column(style="dim", no_wrap=True)
    for ms, share, number, kinds, name in rows:
        made.add_row(f"{ms} ms", share, number, _shortened(kinds, _KINDS_WIDTH), _shortened(name, _NAME_WIDTH))
    return made
