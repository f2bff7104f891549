"""The facts of a board as a text that its owner can send to anybody: what it is, what it has, and no secrets.

Only what is listed here is asked for. Of that, what names the owner, the network or the single board is taken out:
serial numbers, host and user names, home folders, IP and hardware addresses, identifiers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from edgecompile import __version__
from edgecompile.engines import script
from edgecompile.transport import Transport

_FACTS = """
section machine; uname -srm
section cpus; nproc
section model; tr -d "\\000" < "$root/proc/device-tree/model"
section compatible; tr "\\000" "\\n" < "$root/proc/device-tree/compatible"
section cores
grep -E "^(model name|CPU part|CPU implementer|CPU variant|Features)" "$root/proc/cpuinfo" | sort | uniq -c
section system; grep -E "^(NAME|VERSION|ID|VERSION_ID)=" "$root/etc/os-release"
section l4t; cat "$root/etc/nv_tegra_release"
section memory; grep -E "^(MemTotal|MemAvailable|SwapTotal|SwapFree):" /proc/meminfo
section disk; df -Pk . | tail -n 1 | awk "{print \\$2, \\$3, \\$4}"
section packages
names="nvidia-jetpack|nvidia-l4t-core|tensorrt|libnvinfer[a-z0-9-]*|libcudnn[0-9]*|cuda-toolkit-[0-9-]*"
dpkg-query -W -f "\\${Package} \\${Version} \\${Status}\\n" 2>/dev/null | grep -E "^($names) .* installed"
section trtexec
for program in "$(command -v trtexec)" /usr/src/tensorrt/bin/trtexec /usr/src/tensorrt/targets/*/bin/trtexec; do
  [ -f "$program" ] && [ -x "$program" ] && { echo "$program"; break; }
done
section trtexec-help; [ -f "$program" ] && bounded 60 "$program" --help 2>&1 | head -n 300
section python; python3 -V 2>&1
section python-tensorrt; bounded 60 python3 -c "import tensorrt; print(tensorrt.__version__)" 2>&1 | tail -n 1
section python-onnxruntime
bounded 60 python3 -c "import onnxruntime as o; print(o.__version__, o.get_available_providers())" 2>&1 | tail -n 1
section gpu-devices
for file in /dev/nvhost-gpu /dev/nvhost-ctrl-gpu /dev/nvgpu /dev/nvmap; do
  [ -e "$file" ] && { [ -r "$file" ] && [ -w "$file" ] && echo "$file usable" || echo "$file not for this user"; }
done
section groups; id -Gn | tr " " "\\n" | grep -E "^(video|render|docker|sudo)$"
section power-mode; power_mode 2>&1
section power-modes; grep -h "POWER_MODEL" "$root/etc/nvpmodel.conf"
section clocks; as_root jetson_clocks --show </dev/null 2>&1
section tegrastats; bounded 5 tegrastats --interval 200 2>/dev/null | head -n 1
section gpu-frequency; grep -H . "$root"/sys/class/devfreq/*/*_freq
section over-current; grep -H . "$root"/sys/class/hwmon/hwmon*/oc*_event_cnt
section thermal
for zone in "$root"/sys/class/thermal/thermal_zone*; do echo "$(cat "$zone/type") $(cat "$zone/temp")"; done
section container; ls /.dockerenv 2>/dev/null
section names; hostname; id -un; echo "$HOME"; cat "$root/proc/device-tree/serial-number"
section end
exit 0
"""
_SCRIPT = script.with_common(_FACTS)
_TITLES = {"trtexec-help": "the options of trtexec (for those that versions add and remove)"}
#: What a single board, its owner or its network is known by.
_SECRETS = (
    (re.compile(r"\b(?:[0-9a-f]{2}[:-]){5}[0-9a-f]{2}\b", re.IGNORECASE), "<hardware address>"),
    (re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b", re.IGNORECASE), "<identifier>"),
    (re.compile(r"\b[\w.+-]+@[\w-]+(?:\.[\w-]+)*\.[A-Za-z]{2,}\b"), "<address>"),
    (re.compile(r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d.])(?!-\d)"), "<IP address>"),
    (re.compile(r"(?<![\w:])(?:[0-9a-f]{1,4}:){4,7}[0-9a-f]{1,4}(?![\w:])", re.IGNORECASE), "<IP address>"),
    # The same with its zeros left out; a digit tells it from a name of C++'s.
    (
        re.compile(r"(?<![\w:])(?=[0-9a-f:]*\d)(?:[0-9a-f]{1,4}:){1,7}(?::[0-9a-f]{1,4}){1,7}(?![\w:])", re.IGNORECASE),
        "<IP address>",
    ),
    (re.compile(r"(?i)\b(serial(?:[ _-]?number)?\s*[:=]\s*)\S+"), r"\1<serial number>"),
    (re.compile(r"/home/[^/\s:]+"), "/home/<user>"),
)
#: Versions that look like IP addresses stand in these sections, and nothing that is an address.
_VERSIONS = ("packages", "python-tensorrt", "python-onnxruntime", "trtexec-help")
_SHORTEST_NAME = 3


def report(transport: Transport) -> str:
    """The text for a board. Raises `DeviceError` where it does not answer."""
    said = script.ask(transport, _SCRIPT, timeout_s=600.0)
    names = _names(said)
    parts = [
        f"What edgecompile {__version__} found on a board. Serial numbers, names and addresses are taken out; read it "
        "before you send it.\n"
    ]
    for name, text in said.items():
        if name in ("names", "end"):
            continue
        body = scrubbed(text.strip(), names, versions=name in _VERSIONS)
        parts.append(f"[{_TITLES.get(name, name)}]\n{body or '(nothing)'}\n")
    return "\n".join(parts)


def _names(said: Mapping[str, str]) -> tuple[str, ...]:
    """What the board and its owner are called, the longest first. ``root`` names nobody, nor does a short word."""
    rows = [row.strip().strip("\0") for row in said.get("names", "").splitlines()]
    rows += [row.partition(".")[0] for row in rows]  # a host name without its domain
    kept = {row for row in rows if len(row) >= _SHORTEST_NAME and row not in ("root", "/root", "localhost")}
    return tuple(sorted(kept, key=len, reverse=True))


def scrubbed(text: str, names: tuple[str, ...] = (), *, versions: bool = False) -> str:
    """A text without what names a board, its owner or its network; ``versions`` may look like IP addresses."""
    for pattern, put in _SECRETS:
        if not (versions and put == "<IP address>"):
            text = pattern.sub(put, text)
    for name in names:
        text = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", "<name>", text)
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)
