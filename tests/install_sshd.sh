#!/bin/sh
# Install an SSH server for the tests of the SSH transport, where there is none and we may (root, Debian or Ubuntu).
# It is only installed: the tests start one of their own, on a port of their own, with keys of their own.
set -eu
PATH=$PATH:/usr/sbin:/sbin
command -v sshd >/dev/null 2>&1 && exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
  echo "there is no sshd, and it cannot be installed here: the tests of the SSH transport need openssh-server" >&2
  exit 0
fi
# Nothing shall listen on port 22 because of the tests: Debian asks this file whether to start a service.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  printf '#!/bin/sh\nexit 101\n' > "$policy"
  chmod +x "$policy"
  trap 'rm -f "$policy"' EXIT
fi
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends openssh-server openssh-client >/dev/null
