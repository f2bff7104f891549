"""What is said to the shell of a device: constant `sh` scripts, their values as arguments, and how answers are read.

Every script takes a random mark as ``$1`` and puts its answer between ``<mark>:begin`` and ``<mark>:end``, so that
whatever a login script prints before does not matter. The scripts hold no single quotes: they pass through the login
shell of the account (which may be no POSIX shell) as one quoted word.
"""

from __future__ import annotations

import re
import secrets
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field

_COMMON = """
m=$1; shift
answer() { echo "$m:begin"; echo "$@"; echo "$m:end"; }
# A zombie is not running: in a container there may be nobody to reap it.
running() {
  kill -0 "$1" 2>/dev/null || return 1
  case $(cut -d" " -f3 "/proc/$1/stat" 2>/dev/null) in Z|X) return 1;; esac
}
"""

_LOCK = """
umask 077
token=$1 grace=$2
root=${TMPDIR:-/tmp}
lock=$root/edgecompile.lock
boot=$(cat /proc/sys/kernel/random/boot_id 2>/dev/null || uptime -s 2>/dev/null || echo unknown)
field() { cat "$lock/$1" 2>/dev/null; }
born() { cut -d" " -f22 "/proc/$1/stat" 2>/dev/null; }
alive() { kill -0 "$1" 2>/dev/null || [ -d "/proc/$1" ]; }
clean() {
  for f in "$1"/.run/*/pid; do [ -f "$f" ] && kill -KILL "-$(cat "$f")" 2>/dev/null; done
  n=0
  while [ -d "$1" ] && [ "$n" -lt 20 ]; do rm -rf "$1" 2>/dev/null || sleep 1; n=$((n+1)); done
}
own_folder() { case $1 in "$root"/edgecompile-*/*) false;; "$root"/edgecompile-*) [ -d "$1" ];; *) false;; esac; }
"""

# Takes the device's lock and makes the folder, or takes both over after a lost connection (same token); then lives as
# long as the connection, and a while longer: if nobody comes back, it removes everything.
_KEEP = """
stale() {
  pid=$(field pid)
  [ -z "$pid" ] && { [ -n "$(find "$lock" -prune -mmin +1 2>/dev/null)" ]; return; }
  [ "$(field boot)" != "$boot" ] && return 0
  alive "$pid" || return 0
  [ "$(born "$pid")" != "$(field born)" ]
}
if [ "$(field token)" != "$token" ]; then
  if ! said=$(mkdir "$lock" 2>&1); then
    [ -d "$lock" ] || { answer unwritable "$root" "$said"; exit; }
    stale || { answer busy "$lock" "$(field since)"; exit; }
    # One at a time, and after another look: who takes a lock away must not meet one that somebody has just taken.
    # (Where the disk is full, what was left is removed all the same.)
    if mkdir "$lock.breaking" 2>/dev/null || [ ! -d "$lock.breaking" ]; then
      stale && mv "$lock" "$lock.$token" 2>/dev/null
      rmdir "$lock.breaking" 2>/dev/null
      left=$(cat "$lock.$token/folder" 2>/dev/null)
      # Root could clean what anybody on the machine wrote there.
      own_folder "$left" && { [ "$(id -u)" != 0 ] || [ -O "$left" ]; } && clean "$left"
      rm -rf "$lock.$token"
      answer again; exit
    fi
    # Its maker was killed within these two lines.
    [ -n "$(find "$lock.breaking" -prune -mmin +1 2>/dev/null)" ] && rmdir "$lock.breaking" 2>/dev/null
    answer busy "$lock" "$(field since)"; exit
  fi
  chmod 755 "$lock"
  if ! { folder=$(mktemp -d "$root/edgecompile-XXXXXXXX" 2>&1) && mkdir "$folder/.run" \
         && echo "$folder" > "$lock/folder" && echo "$token" > "$lock/token" && echo "$boot" > "$lock/boot" \
         && date +%s > "$lock/since"; } 2>/dev/null; then
    own_folder "$folder" && rm -rf "$folder"
    rm -rf "$lock"; answer unwritable "$root" "$folder"; exit
  fi
fi
folder=$(field folder)
own_folder "$folder" || { rm -rf "$lock"; answer gone; exit; }
born $$ > "$lock/born"
echo $$ > "$lock/pid"
chmod 644 "$lock"/* 2>/dev/null
answer taken "$folder"
cat >/dev/null
n=0
while [ "$n" -lt "$grace" ]; do
  [ "$(field pid)" = "$$" ] || exit 0
  sleep 1; n=$((n+1))
done
[ "$(field pid)" = "$$" ] && { clean "$folder"; rm -rf "$lock"; }
"""

_REMOVE = """
if [ "$(field token)" = "$token" ]; then
  folder=$(field folder)
  own_folder "$folder" && clean "$folder"
  if [ -d "$folder" ]; then answer left "$folder"; exit; fi
  rm -rf "$lock"
fi
answer removed
"""

# Runs as the leader of a process group of its own, which ends with it: nothing that was started outlives the command.
# Its temporary files lie in the folder, too, so that nothing is left of a command that is killed.
# (There is no `--` before the group that is killed: dash takes it for a number.)
# The sleeper ends a command whose time is long over, in case that nobody came back to do so.
_INNER = """
cd "$1" || exit
export TMPDIR="$1"
state=$2 limit=$3; shift 3
echo $$ > "$state/pid.new" && mv "$state/pid.new" "$state/pid"
( sleep "$limit"; kill -KILL "-$$" ) &
"$@" > "$state/out" 2> "$state/err" < /dev/null
code=$?
echo "$code" > "$state/code.new" && mv "$state/code.new" "$state/code"
kill -KILL "-$$"
"""

_START = """
folder=$1 state=$2 limit=$3 inner=$4; shift 4
cd "$folder" || { answer gone; exit; }
command -v -- "$1" >/dev/null 2>&1 || { answer missing; exit; }
if said=$(mkdir "$state" 2>&1); then
  if command -v setsid >/dev/null 2>&1; then
    setsid sh -c "$inner" edgecompile "$folder" "$state" "$limit" "$@" </dev/null >/dev/null 2>&1 &
  else
    set -m
    nohup sh -c "$inner" edgecompile "$folder" "$state" "$limit" "$@" </dev/null >/dev/null 2>&1 &
  fi
elif [ ! -d "$state" ]; then answer refused "$said"; exit
fi
n=0
while [ ! -f "$state/pid" ] && [ "$n" -lt 50 ]; do sleep 0.1 2>/dev/null || sleep 1; n=$((n+1)); done
[ -f "$state/pid" ] && answer started || answer refused "it did not start"
"""

# Waits on the device, since a question a second over SSH would cost the measurement more than a sleeping shell.
_WAIT = """
state=$1 n=0
[ -f "$state/pid" ] && pid=$(cat "$state/pid") || { answer gone; exit; }
while running "$pid" && [ ! -f "$state/code" ]; do
  [ "$n" -lt $(($2 + $3)) ] || { answer running; exit; }
  [ -d "$state" ] || { answer gone; exit; }
  if [ "$n" -lt "$2" ]; then sleep 0.1 2>/dev/null || sleep 1; else sleep 1; fi
  n=$((n+1))
done
[ -f "$state/code" ] && answer ended "$(cat "$state/code")" || answer lost
"""

_KILL = """
pid=$(cat "$1/pid" 2>/dev/null)
[ -n "$pid" ] && kill -KILL "-$pid" 2>/dev/null
n=0
while [ -n "$pid" ] && running "$pid" && [ "$n" -lt 20 ]; do
  sleep 0.1 2>/dev/null || sleep 1
  n=$((n+1))
done
answer killed
"""

_FILES = """
size() { echo $(($(wc -c < "$1"))); }
digest() {
  { sha256sum < "$1" || shasum -a 256 < "$1" || openssl dgst -sha256 -r < "$1" \
    || python3 -c "import hashlib,sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())" < "$1"
  } 2>/dev/null | cut -d" " -f1
}
"""

_PREPARE = """
said=$(mkdir -p "$(dirname "$1")" 2>&1) || { answer refused "$said"; exit; }
[ -f "$1" ] && answer holds "$(size "$1")" || answer holds 0
"""

_FINISH = """
[ -f "$1" ] || { answer absent; exit; }
[ "$(size "$1")" = "$3" ] || { answer size "$(size "$1")"; exit; }
found=$(digest "$1")
[ -n "$found" ] || { answer unable; exit; }
[ "$found" = "$4" ] || { rm -f "$1"; answer differs "$found"; exit; }
said=$(mv -f "$1" "$2" 2>&1) && answer done || answer refused "$said"
"""

_ABOUT = """
[ -f "$1" ] && answer file "$(size "$1")" "$(digest "$1")" || answer absent
"""

_SPACE = """
set -- $(df -Pk "$1" 2>/dev/null | tail -n 1)
answer "$4"
"""

_APPEND = """
cat >> "$1"
"""

_READ = """
echo "$m:begin"
tail -c "+$2" "$1"
"""

# The environment that `edgecompile device setup` makes goes first: environment.py knows the same places.
_PYTHON = """
owner() { echo "$3"; }
if [ "$1" = own ]; then
  uid=$(id -u 2>/dev/null)
  for home in "$EDGECOMPILE_HOME" "$HOME/.edgecompile" "/var/tmp/edgecompile-$uid"; do
    p=$home/current/bin/python
    case $home in /*) ;; *) continue;; esac
    [ -x "$p" ] && [ "$(owner $(ls -ldn "$home" 2>/dev/null))" = "$uid" ] || continue
    "$p" -c "import sys; sys.exit(sys.version_info < (3, 7))" >/dev/null 2>&1 </dev/null || continue
    answer found "$p"
    exit
  done
fi
shift
for p in "$@"; do
  "$p" -c "import sys; sys.exit(sys.version_info < (3, 7))" >/dev/null 2>&1 </dev/null || continue
  answer found "$(command -v "$p")"
  exit
done
answer none
"""

KEEP = _COMMON + _LOCK + _KEEP
REMOVE = _COMMON + _LOCK + _REMOVE
START, INNER, WAIT, KILL = _COMMON + _START, _INNER, _COMMON + _WAIT, _COMMON + _KILL
PREPARE, FINISH, ABOUT = (_COMMON + _FILES + script for script in (_PREPARE, _FINISH, _ABOUT))
SPACE, APPEND, READ, PYTHON = (_COMMON + script for script in (_SPACE, _APPEND, _READ, _PYTHON))


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One script with its arguments, ready to be sent."""

    script: str
    arguments: tuple[str, ...]
    mark: str = field(default_factory=lambda: "ec" + secrets.token_hex(12))

    @property
    def command(self) -> str:
        """The one line for the login shell; this is the only place where anything is quoted."""
        return shlex.join(["sh", "-c", self.script, "edgecompile", self.mark, *self.arguments])

    @property
    def begin(self) -> bytes:
        """What stands before the answer."""
        return f"{self.mark}:begin\n".encode()

    def answer(self, received: bytes) -> list[str] | None:
        """The words of the answer, ``None`` while it is not complete."""
        pattern = re.escape(self.begin) + b"(.*?)" + re.escape(f"{self.mark}:end\n".encode())
        found = re.search(pattern, received, re.DOTALL)
        return found[1].decode(errors="replace").split() if found else None


def call(script: str, *arguments: str | int | Sequence[str]) -> Call:
    """A call of a script of this module; sequences of arguments are spliced in."""
    flat: list[str] = []
    for argument in arguments:
        flat += [str(argument)] if isinstance(argument, str | int) else list(argument)
    return Call(script=script, arguments=tuple(flat))


__all__ = [
    "ABOUT",
    "APPEND",
    "FINISH",
    "INNER",
    "KEEP",
    "KILL",
    "PREPARE",
    "PYTHON",
    "READ",
    "REMOVE",
    "SPACE",
    "START",
    "WAIT",
    "Call",
    "call",
]
