"""The bundle's page: one self-contained HTML file that shows what was tried, what ships, and why. No script, no network."""

from __future__ import annotations

import datetime
import math
from dataclasses import dataclass
from html import escape

from edgecompile import report
from edgecompile.bundle import Manifest, TriedCandidate
from edgecompile.types import GpuState, Measurement

_WORDS = {
    "met": "Budget met, measured",
    "predicted": "Budget predicted, not measured",
    "not met": "Budget not met",
}
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 720, 320, 64, 64, 28, 48

_STYLE = """
:root { --ink: #1c2126; --soft: #5c6873; --line: #d9dee3; --paper: #ffffff; --card: #f5f7f9; --ok: #1a7f4b; --maybe: #9a6700;
  --no: #b3261e; --accent: #2456a6 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --soft: #9aa5b0; --line: #343c44; --paper: #14181c;
  --card: #1c2227; --ok: #4cc38a; --maybe: #e0b04a; --no: #f2776d; --accent: #7aa7f0 } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 780px; padding: 32px 24px 64px; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif }
h1 { font-size: 26px; margin: 0 0 4px } h2 { font-size: 18px; margin: 36px 0 8px }
.soft { color: var(--soft) } .met { color: var(--ok) } .predicted { color: var(--maybe) } .not-met { color: var(--no) }
.verdict { background: var(--card); border-left: 4px solid currentColor; padding: 12px 16px; margin: 20px 0; border-radius: 4px }
.verdict b, .verdict span { display: block } .verdict span, .verdict ul { color: var(--ink) }
.verdict ul { margin: 0; padding-left: 20px }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(128px, 1fr)); gap: 12px }
.facts div { background: var(--card); border-radius: 4px; padding: 10px 12px; line-height: 1.35 }
.facts b { display: block; font-size: 18px; white-space: nowrap } .facts .soft { font-size: 14px }
.scroll { overflow-x: auto } table { border-collapse: collapse; width: 100%; font-size: 14px }
th, td { text-align: left; padding: 6px 12px 6px 0; border-bottom: 1px solid var(--line); vertical-align: top }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap } tr.chosen { font-weight: 600 }
td:first-child { white-space: nowrap } td:last-child { min-width: 120px } ul.doubts { color: var(--maybe); padding-left: 20px }
svg { width: 100%; min-width: 560px; height: auto } svg text { fill: var(--soft); font: 12px system-ui, sans-serif }
svg .label { fill: var(--ink); paint-order: stroke; stroke: var(--paper); stroke-width: 4px; stroke-linejoin: round }
@media (max-width: 480px) { body { padding: 20px 16px 40px } .facts div:last-child:nth-child(odd) { grid-column: span 2 } }
code { font-size: 13px; overflow-wrap: anywhere }
"""


def render(manifest: Manifest) -> str:
    """The page for a manifest, as HTML. Every text from outside is escaped."""
    verdict = manifest.verdict
    state = verdict.status.replace(" ", "-")
    items = "".join(f"<li>{escape(hint)}</li>" for hint in verdict.help)
    hints = f"<span>What would help:</span><ul>{items}</ul>" if items else ""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(manifest.model.name)} for {escape(manifest.target)}</title><style>{_STYLE}</style></head><body>
<h1>{escape(manifest.model.name)} for {escape(manifest.target)}</h1>
<p class="soft">{escape(_date(manifest.created))}, edgecompile {escape(manifest.edgecompile_version)}</p>
<div class="verdict {state}"><b>{_WORDS[verdict.status]}</b><span>{escape(verdict.text)}</span>{hints}</div>
<div class="facts">{_facts(manifest)}</div>
<h2>What was tried</h2>
<div class="scroll">{_plot(manifest)}</div>
<div class="scroll">{_table(manifest)}</div>
{_failures(manifest)}
<p class="soft">{escape(_accuracy_words(manifest))} {escape(report.predictions(manifest) or "")}</p>
{_instructions(manifest)}<h2>How it was measured</h2>
<p>{escape(_measured_words(manifest))}</p>
{_doubts(manifest)}
{_imported(manifest)}{_engines(manifest)}<h2>Inputs and outputs</h2>
<div class="scroll">{_ports(manifest)}</div>
<h2>The model</h2>
<p>{escape(_model_words(manifest))}</p>
<p class="soft"><code>{escape(" ".join(manifest.command_line))}</code></p>
</body></html>
"""


def _date(created: str) -> str:
    """``2026-11-26T19:29:24+00:00`` as ``26 November 2026, 19:29 UTC``; what is no date stays as it is."""
    try:
        when = datetime.datetime.fromisoformat(created).astimezone(datetime.UTC)
    except ValueError:
        return created
    return f"{when.day} {when:%B %Y, %H:%M} UTC"


def _facts(manifest: Manifest) -> str:
    m = manifest.measurement
    chosen = next(c for c in manifest.candidates if c.plan == manifest.plan)
    facts = [
        (
            f"{'~' if m.provenance == 'estimated' else ''}{report.milliseconds(m.value_ms)} ms",
            f"p{m.percentile:g} latency",
        ),
        (f"{manifest.budget.latency_ms:g} ms", "budget"),
        (report.size(chosen.size_bytes), chosen.label),
    ]
    if manifest.accuracy is not None:
        facts.append((report.accuracy(manifest.accuracy), f"{manifest.accuracy.metric}, shipped file"))
    if manifest.accuracy is not None and manifest.accuracy.drop is not None:
        lost = manifest.accuracy.drop
        words = ("points gained", report.drop(manifest.accuracy).lstrip("-")) if lost < 0 else None
        name, value = words or ("points lost", report.drop(manifest.accuracy).lstrip("+"))
        facts.append((value, name))
    return "".join(f"<div><b>{escape(value)}</b><span class=soft>{escape(name)}</span></div>" for value, name in facts)


def _accuracy_words(manifest: Manifest) -> str:
    if manifest.data is None or manifest.accuracy is None:
        return "No data was given, so accuracy was not measured."
    data, found = manifest.data, manifest.accuracy
    text = f"Accuracy in the table: {data.validation} validation samples, on which the choice was made. "
    text += f"The shipped file on {data.evaluation} evaluation samples that nothing was chosen on: "
    text += f"{found.metric} {report.accuracy(found)} [{found.ci_low:.2f}, {found.ci_high:.2f}]"
    if manifest.original_accuracy is not None and found.metric == "top-1":
        text += f", original {report.accuracy(manifest.original_accuracy)}"
    return text + f". {data.calibration} calibration samples."


def _measured_words(manifest: Manifest) -> str:
    m = manifest.measurement
    if m.provenance == "estimated":
        words = f"It was not: latency is estimated from the profile of {m.device}, and the interval is that of the estimate."
        if manifest.emulated is not None:
            words += f" The golden vectors were checked on an emulated {manifest.emulated}, whose times mean nothing."
        return words
    env = m.environment
    words = f"On {m.device}"
    if env is not None and env.board is not None:
        return f"{words} {_board_words(m, env.board)}" + "".join(f" {warning}." for warning in m.warnings)
    if env is not None:
        words += f" ({env.cpu_model or env.machine}, {env.cores} cores, Linux {env.kernel}), load {env.load_before:.2f} before "
        words += f"and {env.load_after:.2f} after"
    words += f"; {m.runtime} {m.runtime_version}, {m.threads} thread{'s' if m.threads > 1 else ''}, {m.runs} runs in rounds interleaved with the other "
    words += "candidates, after a warm-up. Intervals are at 95 %, by a block bootstrap over runs."
    apart = [("loading", m.load_ms), ("the first run", m.cold_ms)]
    told = [f"{name} {report.milliseconds(ms)} ms" for name, ms in apart if ms is not None]
    told += [f"peak memory {report.size(m.peak_memory_bytes)}"] if m.peak_memory_bytes is not None else []
    if m.speed_up is not None:
        told.append(f"{m.speed_up.value:.2f} times the speed of the whole model in float32, which took turns with it")
    return f"{words} Apart from that: {', '.join(told)}." if told else words


def _imported(manifest: Manifest) -> str:
    """Latencies from elsewhere, on which the verdict does not stand."""
    if not manifest.imported:
        return ""
    lines = [
        f"{report.latency(m)} ms (p{m.percentile:g}) on {m.device}, {m.runtime}, {m.threads} thread"
        f"{'s' if m.threads > 1 else ''}, {m.runs} runs{''.join(f'; {words}' for words in m.warnings)}"
        for m in manifest.imported
    ]
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return (
        f"<h2>Imported</h2><p>Measured elsewhere and brought in; the verdict does not stand on it.</p><ul>{items}</ul>"
    )


def _doubts(manifest: Manifest) -> str:
    """What speaks against the latency, one line each."""
    items = "".join(f"<li>{escape(words)}</li>" for words in manifest.measurement.warnings)
    return f'<ul class="doubts">{items}</ul>' if items else ""


def _board_words(m: Measurement, board: GpuState) -> str:
    known = [f"TensorRT {board.tensorrt}", board.gpu]
    known += [f"JetPack {board.jetpack}"] if board.jetpack else []
    known += [f"power mode {board.power_mode}"] if board.power_mode else []
    locked = {True: "clocks locked", False: "clocks not locked", None: "clocks unknown"}[board.clocks_locked]
    heat = "" if board.junction_c_highest is None else f", {board.junction_c_highest:g} C at most"
    return (
        f"({', '.join([*known, locked])}{heat}): {m.runs} runs in rounds that alternate between the candidates, each a "
        "process of its own after a warm-up. A latency is the GPU's time for a run, without transfers. Intervals are at "
        "95 %, by a block bootstrap over runs."
    )


def _engines(manifest: Manifest) -> str:
    """The engines in the bundle, each with its costliest layers; nothing where there is none."""
    parts = []
    for engine in manifest.engines:
        words = (
            f"{engine.path}: TensorRT {engine.tensorrt} on {engine.gpu}, built there in {engine.build_s:.0f} s with "
        )
        words += f"{' '.join(engine.options)}. It works with that version on that GPU only; build_engine.sh in this "
        words += "folder builds one on another board."
        rows = [_tr([_cell(c, "th") for c in ("layer", "n:ms", "n:share")])]
        for layer in engine.layers:
            rows.append(_tr([_cell(c) for c in (layer.name, f"n:{layer.average_ms:.4g}", f"n:{layer.percent:.1f} %")]))
        table = f'<div class="scroll"><table>{"".join(rows)}</table></div>' if engine.layers else ""
        parts.append(f"<h2>The engine</h2>\n<p>{escape(words)}</p>\n{table}\n")
    return "".join(parts)


def _model_words(manifest: Manifest) -> str:
    model = manifest.model
    words = (
        f"{model.source} ({model.kind}; SHA-256 {model.sha256[:16]}...), {report.count(model.parameters)} parameters, "
    )
    words += f"{report.count(model.macs)} multiply-accumulates"
    for name, value in (("licence", model.license), ("source", model.source_url)):
        words += f", {name} {value}" if value else ""
    return words + "." + "".join(f" {note}." for note in model.notes)


def _table(manifest: Manifest) -> str:
    metric = next((c.validation.metric for c in manifest.candidates if c.validation), "accuracy")
    heads = ("candidate", "n:size", "n:latency, ms [95 %]", f"n:{metric}", "n:drop", "verdict")
    rows = [_tr([_cell(c, "th") for c in heads])]
    own = report.original_on_validation(manifest)
    if own is not None:
        rows.append(_tr([_cell(c) for c in ("original", "n:", "n:", f"n:{own:.2f} %", "n:", "")], style="soft"))
    for c in manifest.candidates:
        steps = ", ".join(step.technique for step in c.plan.steps)
        cells = (
            f"{c.label} ({steps})" if steps else c.label,
            f"n:{report.size(c.size_bytes)}",
            f"n:{report.latency(c.measurement)}",
            f"n:{report.accuracy(c.validation)}",
            f"n:{report.drop(c.validation)}",
            report.verdict_words(c),
        )
        rows.append(_tr([_cell(cell) for cell in cells], style="chosen" if c.plan == manifest.plan else ""))
    return f"<table>{''.join(rows)}</table>"


def _failures(manifest: Manifest) -> str:
    return "".join(f'<p class="soft">{escape(words)}</p>' for words in report.failures(manifest))


def _instructions(manifest: Manifest) -> str:
    """The instructions of the candidates, where an emulated board counted them."""
    found = [(c, c.instructions) for c in manifest.candidates if c.instructions is not None]
    if not found:
        return ""
    first = found[0][1]
    rows = [_tr([_cell(c, "th") for c in ("candidate", f"n:{first.label}", "n:times the first", "runtime")])]
    for c, one in found:
        ratio = one.per_inference / first.per_inference
        cells = (c.label, f"n:{one.per_inference:,}", f"n:{ratio:.4f}", one.runtime)
        rows.append(_tr([_cell(cell) for cell in cells], style="chosen" if c.plan == manifest.plan else ""))
    words = "Of one inference with one thread: equal run after run, and no time. Fewer instructions may take longer."
    return f'<h2>Instructions</h2>\n<div class="scroll"><table>{"".join(rows)}</table></div>\n<p class="soft">{words}</p>\n'


def _ports(manifest: Manifest) -> str:
    rows = [_tr([_cell(c, "th") for c in ("", "name", "shape", "type", "quantization", "in the original")])]
    for kind, ports in (("input", manifest.inputs), ("output", manifest.outputs)):
        for port in ports:
            q = port.spec.quantization
            scale = f"scale {q.scale[0]:.6g}, zero point {q.zero_point[0]}" if q and q.scale else "-"
            origin = port.model_name + (f", axes {port.permutation}" if port.permutation else "")
            shape = " x ".join(map(str, port.spec.shape))
            rows.append(_tr([_cell(c) for c in (kind, port.spec.name, shape, port.spec.dtype, scale, origin)]))
    return f"<table>{''.join(rows)}</table>"


def _cell(text: str, tag: str = "td") -> str:
    """A cell; a leading ``n:`` makes it a number, aligned to the right."""
    numeric = text.startswith("n:")
    attribute = ' class="n"' if numeric else ""
    return f"<{tag}{attribute}>{escape(text.removeprefix('n:') if numeric else text)}</{tag}>"


def _tr(cells: list[str], *, style: str = "") -> str:
    attribute = f' class="{style}"' if style else ""
    return f"<tr{attribute}>{''.join(cells)}</tr>"


# ----------------------------------------------------------------------------------------------------- the plot


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scale:
    """Maps milliseconds (logarithmic) and the metric to the picture."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, value: float) -> float:
        part = math.log(value / self.x_low) / math.log(self.x_high / self.x_low)
        return _LEFT + part * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        part = (value - self.y_low) / (self.y_high - self.y_low)
        return _HEIGHT - _BOTTOM - part * (_HEIGHT - _TOP - _BOTTOM)


def _plot(manifest: Manifest) -> str:
    """Latency against accuracy, one mark a candidate, with intervals and the budget; nothing where neither is known."""
    shown = [c for c in manifest.candidates if c.measurement and c.validation]
    if not shown:
        return ""
    own = report.original_on_validation(manifest)
    scale = _scale(shown, manifest.budget.latency_ms, own)
    metric = shown[0].validation.metric if shown[0].validation else ""
    marks = "".join(_mark(c, scale, chosen=c.plan == manifest.plan) for c in shown)
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="Latency against {escape(metric)} of each candidate">'
        f"{_axes(scale, metric)}{_budget_line(scale, manifest.budget.latency_ms)}{_original_line(scale, own)}"
        f"{_frontier_line(manifest, scale)}{marks}{_labels(shown, scale)}</svg>"
    )


def _scale(shown: list[TriedCandidate], budget_ms: float, original: float | None) -> _Scale:
    times = [budget_ms] + [t for c in shown if (m := c.measurement) for t in (m.ci_low_ms, m.ci_high_ms)]
    values = [v for c in shown if (a := c.validation) for v in (a.ci_low, a.ci_high)]
    values += [original] if original is not None else []
    margin = max(0.5, 0.08 * (max(values) - min(values)))
    top = max(values) + margin
    percent = shown[0].validation is not None and shown[0].validation.unit == "%"
    return _Scale(
        x_low=min(times) / 1.25,
        x_high=max(times) * 1.25,
        y_low=min(values) - margin,
        y_high=min(top, 100.5) if percent else top,
    )


def _ticks(low: float, high: float) -> list[float]:
    """1, 2, 5 times powers of ten between ``low`` and ``high``."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    return [t for e in range(first, last + 1) for k in (1, 2, 5) if low <= (t := k * 10.0**e) <= high]


def _axes(scale: _Scale, metric: str) -> str:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = []
    for tick in _ticks(scale.x_low, scale.x_high):
        x = scale.x(tick)
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{bottom}" stroke="var(--line)"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{tick:g}</text>')
    step = _nice_step(scale.y_high - scale.y_low)
    value = math.ceil(scale.y_low / step) * step
    while value <= scale.y_high:
        y = scale.y(value)
        parts.append(f'<line x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="var(--line)"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
        value = round(value + step, 9)
    parts.append(f'<text x="{right}" y="{_HEIGHT - 8}" text-anchor="end">latency, ms (logarithmic)</text>')
    unit = "dB" if metric == "SQNR" else "%"
    parts.append(f'<text x="{_LEFT}" y="{_TOP - 10}">{escape(metric)}, {unit} (validation part)</text>')
    return "".join(parts)


def _nice_step(span: float) -> float:
    raw = span / 5
    power = 10.0 ** math.floor(math.log10(raw))
    return next(power * k for k in (1, 2, 5, 10) if power * k >= raw)


def _budget_line(scale: _Scale, budget_ms: float) -> str:
    x = scale.x(budget_ms)
    side, anchor = (-6, "end") if x > _LEFT + 60 else (6, "start")
    return (
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}" stroke="var(--accent)" stroke-width="2" '
        f'stroke-dasharray="6 4"/><text x="{x + side:.1f}" y="{_HEIGHT - _BOTTOM - 8}" text-anchor="{anchor}" '
        f'style="fill: var(--accent)">budget</text>'
    )


def _original_line(scale: _Scale, original: float | None) -> str:
    """A line at the original's accuracy, which every candidate is compared with."""
    if original is None:
        return ""
    y = scale.y(original)
    return (
        f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="var(--soft)" stroke-dasharray="2 3"/>'
        f'<text x="{_WIDTH - _RIGHT + 6}" y="{y + 4:.1f}">original</text>'
    )


def _frontier_line(manifest: Manifest, scale: _Scale) -> str:
    """A staircase through the candidates that no other beats: what each millisecond buys."""
    points = report.on_frontier(manifest)
    if len(points) < 2:
        return ""
    path: list[str] = []
    last = 0.0
    for c in points:
        assert c.measurement is not None
        assert c.validation is not None
        x, y = scale.x(c.measurement.value_ms), scale.y(c.validation.value)
        path.append(f"{'L' if path else 'M'}{x:.1f},{last if path else y:.1f} L{x:.1f},{y:.1f}")
        last = y
    return f'<path d="{" ".join(path)}" fill="none" stroke="var(--accent)" stroke-opacity="0.5" stroke-width="1.5"/>'


def _mark(candidate: TriedCandidate, scale: _Scale, *, chosen: bool) -> str:
    m, a = candidate.measurement, candidate.validation
    assert m is not None
    assert a is not None
    x, y = scale.x(m.value_ms), scale.y(a.value)
    colour = "var(--no)"
    if candidate.verdict.startswith(("met", "predicted")):
        colour = "var(--ok)" if candidate.verdict.startswith("met") else "var(--maybe)"
    bars = (
        f'<line x1="{scale.x(m.ci_low_ms):.1f}" x2="{scale.x(m.ci_high_ms):.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{scale.y(a.ci_low):.1f}" y2="{scale.y(min(a.ci_high, scale.y_high)):.1f}"/>'
    )
    ring = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="10" fill="none"/>' if chosen else ""
    title = f"<title>{escape(candidate.label)}: {report.latency(m)} ms, {report.accuracy(a)}</title>"
    return f'<g stroke="{colour}" stroke-width="1.5">{title}{bars}{ring}<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{colour}"/></g>'


def _labels(shown: list[TriedCandidate], scale: _Scale) -> str:
    """Names beside the marks, moved down where two would lie on each other."""
    placed: list[tuple[float, float]] = []
    parts = []
    for c in sorted(shown, key=lambda c: c.measurement.value_ms if c.measurement else 0.0):
        assert c.measurement is not None
        assert c.validation is not None
        x, y = scale.x(c.measurement.value_ms), scale.y(c.validation.value) - 14
        width = 7.0 * len(c.label)
        left = min(max(x - width / 2, _LEFT), _WIDTH - _RIGHT - width)
        while any(abs(left - other_x) < width and abs(y - other_y) < 15 for other_x, other_y in placed):
            y += 15
            if abs(y - scale.y(c.validation.value)) < 12:
                y = scale.y(c.validation.value) + 24
        placed.append((left, y))
        parts.append(f'<text class="label" x="{left:.1f}" y="{y:.1f}">{escape(c.label)}</text>')
    return "".join(parts)
