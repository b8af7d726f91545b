#!/usr/bin/env bash
# A whole mesh on this machine, in network namespaces, with every claim shown: sudo deploy/demo.sh [--keep | --clean]
#
#   --keep    leave it running at the end and print what to try
#   --clean   remove what an earlier run left
#
# Installs what is missing (deploy/setup.sh), then runs deploy/demo/run.py. Exit code 0 only if every claim held.
set -euo pipefail
cd "$(dirname "$0")/.."

die() { printf 'demo: %s\n  hint: %s\n' "$1" "$2" >&2; exit 5; }

case "${1:-}" in
  ''|--keep|--clean) ;;
  -h|--help) sed -n '2,7s/^# \{0,1\}//p' deploy/demo.sh; exit 0 ;;
  *) printf 'demo: unknown option %s\n  hint: deploy/demo.sh [--keep | --clean]\n' "$1" >&2; exit 2 ;;
esac

[ "$(id -u)" = 0 ] || die "root is needed to make network namespaces and interfaces" "run it with sudo"

has_wireguard() {
  [ -d /sys/module/wireguard ] || modprobe --quiet wireguard 2>/dev/null
}
has_tun() {
  [ -c /dev/net/tun ] || modprobe --quiet tun 2>/dev/null || true
  [ -c /dev/net/tun ] && (exec 3<>/dev/net/tun) 2>/dev/null
}
has_wireguard || has_tun || die \
  "this kernel has neither WireGuard nor TUN (/dev/net/tun), so no tunnel can be made" \
  "use a virtual machine, or start the container with --cap-add NET_ADMIN --device /dev/net/tun"

deploy/setup.sh
exec .venv/bin/python deploy/demo/run.py "$@"
