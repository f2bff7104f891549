"""A stand-in for a phone and the ``adb`` client: the client's words, a shell, and what a phone's services print."""

from __future__ import annotations

import shutil
import stat
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

#: What the client does, as its documentation says: https://developer.android.com/tools/adb
CLIENT = r"""#!/bin/sh
ROOT='{root}'
there() { printf "%s\n" "$1" | sed "s#/data/local/tmp#$ROOT/tmp#g"; }
serial=
[ "$1" = -s ] && { serial=$2; shift 2; }
echo "$1" >> "$ROOT/calls"
[ -s "$ROOT/fault" ] && { echo "error: $(cat "$ROOT/fault")" >&2; exit 1; }
case $serial in ""|PHONE123) ;; *) echo "error: device '$serial' not found" >&2; exit 1;; esac
case $1 in
  get-state) echo device;;
  push)
    if [ -e "$ROOT/full" ]; then
      echo "adb: error: failed to copy '$2' to '$3': remote couldn't create file: No space left on device" >&2; exit 1
    fi
    cp "$2" "$(there "$3")" && echo "$2: 1 file pushed, 0 skipped.";;
  pull)
    if [ ! -e "$(there "$2")" ]; then
      echo "adb: error: failed to stat remote object '$2': No such file or directory" >&2; exit 1
    fi
    cp "$(there "$2")" "$3" && echo "$2: 1 file pulled, 0 skipped.";;
  shell)
    shift
    command=$(there "$*")
    cd /
    exec env -i PATH="$ROOT/bin" HOME=/ STANDIN="$ROOT" setsid -w "$ROOT/bin/sh" -c "$command";;
  *) echo "adb: unknown command $1" >&2; exit 1;;
esac
"""

#: What LiteRT's benchmark_model prints, in the form of its sources; the times come from the file's size.
BENCHMARK_MODEL = r"""#!/bin/sh
for word in "$@"; do case $word in
  --graph=*) graph=${word#*=};;
  --num_runs=*) runs=${word#*=};;
  --num_threads=*) threads=${word#*=};;
  --output_filepath=*) "{python}" "{helper}" "$@" || exit;;
esac; done
[ -f "$graph" ] || { echo "ERROR: Failed to load model $graph" >&2; exit 1; }
size=$(($(wc -c < "$graph")))
median=$(({base_us} + size / 1000))
{first}
cat <<END
INFO: STARTING!
INFO: Log parameter values verbosely: [0]
INFO: Min num runs: [$runs]
INFO: Num threads: [$threads]
INFO: Graph: [$graph]
INFO: Created TensorFlow Lite XNNPACK delegate for CPU.
INFO: The input model file size (MB): $((size / 1000000)).$(printf %06d $((size % 1000000)))
INFO: Initialized session in 4.183ms.
INFO: Running benchmark for at least 1 iterations and at least 0.5 seconds but terminate if exceeding 150 seconds.
INFO: count=13 first=39195 curr=37526 min=37464 max=39195 avg=37625.7 std=453 p5=37464 median=37501 p95=39195

INFO: Running benchmark for at least $runs iterations and at least 1 seconds but terminate if exceeding 150 seconds.
INFO: count=$runs first=$((median + 9)) curr=$median min=$((median - 5)) max=$((median + 90)) avg=$((median + 3)).5 \
std=27 p5=$((median - 4)) median=$median p95=$((median + 40))

INFO: Inference timings in us: Init: 4183, First inference: 39195, Warmup (avg): 37625.7, Inference (avg): $median.5
INFO: Note: as the benchmark tool itself affects memory footprint, the following is only APPROXIMATE to the actual \
memory footprint of the model at runtime. Take the information at your discretion.
INFO: Memory footprint delta from the start of the tool (MB): init=3.25 overall=6.5
END
"""

#: Runs a file on given inputs, as ``--input_layer_value_files`` and ``--output_filepath`` ask.
HELPER = """
import sys
sys.path[:0] = {path}
import numpy as np
from ai_edge_litert.interpreter import Interpreter
options = dict(word[2:].split("=", 1) for word in sys.argv[1:])
interpreter = Interpreter(model_path=options["graph"])
interpreter.allocate_tensors()
files = dict(pair.split(":") for pair in options["input_layer_value_files"].split(","))
for detail, name in zip(interpreter.get_input_details(), options["input_layer"].split(",")):
    data = np.frombuffer(open(files[name], "rb").read(), dtype=detail["dtype"])
    interpreter.set_tensor(detail["index"], data.reshape(detail["shape"]))
interpreter.invoke()
with open(options["output_filepath"], "wb") as stream:
    for detail in interpreter.get_output_details():
        stream.write(interpreter.get_tensor(detail["index"]).tobytes())
"""

#: ``dumpsys thermalservice`` and ``battery`` of phones with Android 10 and later, as their users have published them.
THERMAL = """IsStatusOverride: false
ThermalEventListeners:
\tcallbacks: 2
\tkilled: false
\tbroadcasts count: -1
ThermalStatusListeners:
\tcallbacks: 5
\tkilled: false
\tbroadcasts count: -1
Thermal Status: {status}
Cached temperatures:
\tTemperature{{mValue=84.208, mType=0, mName=CPU, mStatus=0}}
\tTemperature{{mValue=38.0, mType=3, mName=SKIN, mStatus=1}}
HAL Ready: true
HAL connection:
\tThermalHAL AIDL 1  connected: yes
Current temperatures from HAL:
\tTemperature{{mValue=44.8, mType=0, mName=CPU0, mStatus=0}}
\tTemperature{{mValue=46.25, mType=0, mName=CPU7, mStatus=0}}
\tTemperature{{mValue=-99.9, mType=6, mName=TYPE_POWER_AMPLIFIER, mStatus=0}}
\tTemperature{{mValue=34.351, mType=3, mName=SKIN, mStatus=0}}
Current cooling devices from HAL:
\tCoolingDevice{{mValue=0, mType=2, mName=thermal-cpufreq-0}}
"""
BATTERY = """Current Battery Service state:
  AC powered: false
  USB powered: {usb}
  Wireless powered: false
  Max charging current: 500000
  status: 2
  health: 2
  present: true
  level: {level}
  scale: 100
  voltage: 4156
  temperature: 357
  technology: Li-ion
"""


@dataclass(kw_only=True)
class Phone:
    """The stand-in; ``tmp`` is what it calls /data/local/tmp."""

    root: Path
    client: Path
    program: Path

    @property
    def tmp(self) -> Path:
        return self.root / "tmp"

    def left(self) -> list[str]:
        """What lies in the folder, after waiting a moment for what is just being removed."""
        end = time.monotonic() + 8
        while (names := sorted(p.name for p in self.tmp.iterdir())) and time.monotonic() < end:
            time.sleep(0.05)
        return names

    def calls(self) -> set[str]:
        """What the client was asked for."""
        return set((self.root / "calls").read_text().split())

    def services(self, *, status: int = 0, level: int = 75, usb: str = "true", saving: int = 0) -> None:
        """What the services print from now on."""
        (self.root / "thermal").write_text(THERMAL.format(status=status))
        (self.root / "battery").write_text(BATTERY.format(level=level, usb=usb))
        (self.root / "saving").write_text(f"{saving}\n")

    def measures(self, base_us: int, *, first: str = ":") -> None:
        """What the program takes from now on, in microseconds; ``first`` is what it does before it prints."""
        text = BENCHMARK_MODEL.replace("{base_us}", str(base_us)).replace("{first}", first)
        helper = self.root / "helper.py"
        helper.write_text(HELPER.replace("{path}", repr([path for path in sys.path if path])))
        executable(self.program, text.replace("{python}", sys.executable).replace("{helper}", str(helper)))


def executable(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


#: Programs of Android's toybox that are used.
TOOLS = (
    "cat chmod cp cut date df dirname find id kill ls mkdir mktemp mv printf rm setsid sha256sum sleep tail taskset "
    "true uname uptime wc"
)


def tools(folder: Path) -> None:
    """The programs of the phone: toybox and mksh, which are Android's own, where they are installed."""
    toybox, mksh = shutil.which("toybox"), shutil.which("mksh")
    folder.mkdir(parents=True)
    (folder / "sh").symlink_to(mksh or "/bin/sh")
    for name in TOOLS.split():
        found = toybox or shutil.which(name)
        assert found is not None, name
        (folder / name).symlink_to(found)


def make_phone(root: Path, monkeypatch: pytest.MonkeyPatch) -> Phone:
    """A phone with the serial number PHONE123, whose client is the one that the tests use."""
    (root / "tmp").mkdir(parents=True)
    tools(root / "bin")
    for name, text in {
        "dumpsys": 'case $1 in thermalservice) cat "$STANDIN/thermal";; battery) cat "$STANDIN/battery";; esac',
        "settings": 'cat "$STANDIN/saving"',
        "getprop": "case $1 in *manufacturer) echo Acme;; *model) echo Phone 7;; *) echo 14;; esac",
    }.items():
        executable(root / "bin" / name, f"#!/bin/sh\n{text}\n")
    client = root / "adb"
    executable(client, CLIENT.replace("{root}", str(root)))
    monkeypatch.setenv("ADB", str(client))
    phone = Phone(root=root, client=client, program=root / "benchmark_model")
    phone.services()
    phone.measures(9000)
    return phone
