"""What is said to the shell of a board: constant scripts, and how their answers are taken apart.

A script takes a random mark as ``$1`` and prints sections, each under a line with the mark and its name, so that what
login scripts and tools print cannot be taken for one. Values go in as arguments, never into the text.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping

from edgecompile.errors import DeviceError
from edgecompile.transport import Transport

#: In a container, ``EDGECOMPILE_HOST_ROOT`` says where the board's own files are mounted.
_COMMON = """
mark=$1; shift
root=${EDGECOMPILE_HOST_ROOT:-}
PATH=$PATH:/usr/sbin:/sbin:/usr/local/bin
section() { printf "\\n%s %s\\n" "$mark" "$1"; }
as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}
# Older systems tell it to root only.
power_mode() { nvpmodel -q 2>/dev/null || as_root nvpmodel -q; }
bounded() { if command -v timeout >/dev/null 2>&1; then timeout "$@"; else shift; "$@"; fi; }
"""

_PROBE = """
section kernel; uname -m; uname -r
section cpus; nproc
section model; tr -d "\\000" < "$root/proc/device-tree/model"
section compatible; tr "\\000" "\\n" < "$root/proc/device-tree/compatible"
section l4t; cat "$root/etc/nv_tegra_release"
section memory; grep -E "^(MemTotal|MemAvailable|SwapFree):" /proc/meminfo
section disk; df -Pk . | tail -n 1
section trtexec
for program in "$(command -v trtexec)" /usr/src/tensorrt/bin/trtexec /usr/src/tensorrt/targets/*/bin/trtexec \
    /usr/local/tensorrt/bin/trtexec /opt/tensorrt/bin/trtexec; do
  [ -f "$program" ] && [ -x "$program" ] && { echo "$program"; break; }
done
section banner
[ -f "$program" ] && bounded 60 "$program" --help 2>&1 | head -n 40
section packages
for name in libnvinfer-bin libnvinfer8 libnvinfer10 libnvinfer11 tensorrt; do
  dpkg-query -W -f "\\${Package} \\${Version}\\n" "$name"
done
section python; bounded 60 python3 -c "import tensorrt; print(tensorrt.__version__)"
section providers; bounded 60 python3 -c "import onnxruntime as o; print(\\"\\\\n\\".join(o.get_available_providers()))"
section gpu; bounded 60 python3 -c "
import ctypes
cuda = ctypes.CDLL(\\"libcuda.so.1\\")
code = cuda.cuInit(0)
if code:
    raise SystemExit(\\"error %d\\" % code)
device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
cuda.cuDeviceGet(ctypes.byref(device), 0)
cuda.cuDeviceGetName(name, 256, device)
def attribute(number):
    value = ctypes.c_int()
    cuda.cuDeviceGetAttribute(ctypes.byref(value), number, device)
    return value.value
print(name.value.decode())
print(\\"%d.%d\\" % (attribute(75), attribute(76)))
print(attribute(16))
"
section modes; grep -h "POWER_MODEL" "$root/etc/nvpmodel.conf"
section end
exit 0
"""

_STATE = """
section mode; power_mode
section clocks; as_root jetson_clocks --show </dev/null
section usage; bounded 5 tegrastats --interval 200 2>/dev/null | head -n 1
section over-current; grep -H . "$root"/sys/class/hwmon/hwmon*/oc*_event_cnt
section frequency
for folder in "$root"/sys/class/devfreq/*; do
  case $(cat "$folder/device/of_node/name" 2>/dev/null; basename "$folder") in *gpu*|*gv11b*|*gp10b*|*ga10b*)
    cat "$folder/min_freq" "$folder/max_freq" "$folder/cur_freq"; break;;
  esac
done
section load; cut -d" " -f1 /proc/loadavg
section memory; grep -E "^MemAvailable:" /proc/meminfo
section end
exit 0
"""

# The answer to the question whether to reboot is no: nvpmodel would wait for one.
_SET_MODE = """
section said; echo no | as_root nvpmodel -m "$1" 2>&1
section now; power_mode
section end
exit 0
"""

# Stays behind in a session of its own, so that the mode is put back whatever becomes of us and of the connection: the
# folder that it watches is removed when the work ends in any way.
_GUARD = """
folder=$PWD mode=$1
sh -c "
  while [ -d \\"\\$1\\" ]; do sleep 1; done
  echo no | if [ \\"\\$(id -u)\\" = 0 ]; then nvpmodel -m \\"\\$2\\"; else sudo -n nvpmodel -m \\"\\$2\\"; fi
" guard "$folder" "$mode" </dev/null >/dev/null 2>&1 &
echo $! > guard.new
"""

_START_GUARD = """
if command -v setsid >/dev/null 2>&1; then
  setsid sh -c "$1" guard-starter "$mark" "$2" </dev/null >/dev/null 2>&1
else
  set -m; sh -c "$1" guard-starter "$mark" "$2" </dev/null >/dev/null 2>&1
fi
section guard; cat guard.new
section end
exit 0
"""

_STOP_GUARD = """
section guard; kill "$(cat guard.new)"
section end
exit 0
"""


def with_common(body: str) -> str:
    """A script made whole: what all of them share, and its own part."""
    return _COMMON + body


PROBE, STATE, SET_MODE = map(with_common, (_PROBE, _STATE, _SET_MODE))
GUARD = "shift\n" + _GUARD
START_GUARD, STOP_GUARD = map(with_common, (_START_GUARD, _STOP_GUARD))


def ask(transport: Transport, script: str, *arguments: str, timeout_s: float = 300.0) -> Mapping[str, str]:
    """Run a script of this module on a machine; its sections by name. A section of what is not there is empty.

    Raises `DeviceError` where the machine does not answer to the end.
    """
    mark = "@@" + secrets.token_hex(12)
    done = transport.run(["sh", "-c", script, "edgecompile", mark, *arguments], timeout_s=timeout_s)
    found: dict[str, list[str]] = {}
    rows: list[str] = []
    for line in done.out.replace("\r\n", "\n").split("\n"):
        head, _, name = line.partition(" ")
        if head == mark:
            rows = found.setdefault(name.strip(), [])
        else:
            rows.append(line)
    if "end" not in found:
        said = (done.err or done.out).strip().splitlines()
        raise DeviceError(
            f"{transport.description} stopped while it was asked about itself: {said[-1] if said else 'no answer'}",
            remedy="the account needs a POSIX shell; see that the machine is up, and try again",
        )
    return {name: "\n".join(lines) for name, lines in found.items()}
