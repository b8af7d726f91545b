#!/usr/bin/env bash
# The whole suite on real parts: sudo tests/run.sh [pytest arguments]. A test skipped for a part that is not absent is a failure.
set -euo pipefail
cd "$(dirname "$0")/.."
deploy/setup.sh tests
pytest=(.venv/bin/python -m pytest -p tests.noskip)
[ $# -eq 0 ] || exec "${pytest[@]}" "$@"

# What takes minutes and mostly waits runs beside the rest, in two lines: all together take half the time.
lines=(
  "tests/vm tests/netns/test_psk.py"
  "tests/attacks/test_ageing.py tests/attacks/test_quiet.py tests/netns/test_etcd_weather.py tests/netns/test_rotation_weather.py"
)
read -ra beside <<<"${lines[*]}"
said=$(mktemp -d)
others=()
set -m # else bash has them ignore the Ctrl-C that the trap passes on
for line in "${!lines[@]}"; do
  read -ra words <<<"${lines[$line]}"
  "${pytest[@]}" "${words[@]}" </dev/null >"$said/$line" 2>&1 &
  others+=($!)
done
set +m
trap 'kill -INT "${others[@]}" 2>/dev/null || true; wait "${others[@]}" || true; rm -rf "$said"' EXIT
failed=0
"${pytest[@]}" "${beside[@]/#/--ignore=}" || failed=$?
for line in "${!lines[@]}"; do
  wait "${others[$line]}" || failed=$?
  cat "$said/$line"
done
exit "$failed"
