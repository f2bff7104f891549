#!/bin/sh
# Install what the tests of the emulated boards need, where it is missing and we may (root, Debian or Ubuntu). QEMU and
# the boards' file system are not among it: the lab fetches these itself, into its own folder.
set -eu
PATH=$PATH:/usr/sbin:/sbin
missing=
need() { command -v "$1" >/dev/null 2>&1 || missing="$missing $2"; }
need unshare util-linux
need mount mount
need hostname hostname
need tar tar
if ! printf '#include <stdio.h>\nint f(void) { return puts(""); }\n' | cc -shared -fPIC -xc -o /dev/null - 2>/dev/null
then missing="$missing gcc libc6-dev"; fi
[ -f /usr/share/keyrings/debian-archive-keyring.gpg ] || missing="$missing debian-archive-keyring"
[ -n "$missing" ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
  echo "the tests of the emulated boards need these packages, which cannot be installed here:$missing" >&2
  exit 0
fi
apt-get update -qq
# shellcheck disable=SC2086
DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $missing >/dev/null
