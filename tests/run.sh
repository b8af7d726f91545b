#!/usr/bin/env bash
# The whole suite on real parts: sudo tests/run.sh [pytest arguments]. A test skipped for a part that is not absent is a failure.
set -euo pipefail
cd "$(dirname "$0")/.."
deploy/setup.sh tests
pytest=(.venv/bin/python -m pytest -p tests.noskip)
[ $# -eq 0 ] || exec "${pytest[@]}" "$@"

# On kernel WireGuard, in an emulated machine that has both cores to itself: with half of them it stands still for longer
# than WireGuard's queue holds.
rotation=tests/vm/test_rotation.py
failed=0
"${pytest[@]}" "$rotation" || failed=$?

# What takes minutes and mostly waits runs beside the rest, in two lines: all together take half the time.
lines=(
  "tests/vm/test_kernel_wireguard.py tests/netns/test_psk.py tests/netns/test_outage.py tests/netns/test_replicas.py
   tests/attacks/test_attacks.py"
  "tests/attacks/test_ageing.py tests/attacks/test_quiet.py tests/netns/test_liar_elsewhere.py
   tests/netns/test_matrix.py tests/netns/test_matrix_elsewhere.py
   tests/netns/test_etcd_weather.py tests/netns/test_rotation.py tests/netns/test_rotation_weather.py
   tests/netns/test_hung_wireguard.py"
)
# shellcheck disable=SC2206
elsewhere=("$rotation" ${lines[*]})
said=$(mktemp -d)
others=()
set -m # else bash has them ignore the Ctrl-C that the trap passes on
for line in "${!lines[@]}"; do
  # shellcheck disable=SC2086
  nice -n 5 "${pytest[@]}" ${lines[$line]} </dev/null >"$said/$line" 2>&1 &
  others+=($!)
done
set +m
trap 'kill -INT "${others[@]}" 2>/dev/null || true; wait "${others[@]}" || true; rm -rf "$said"' EXIT
"${pytest[@]}" "${elsewhere[@]/#/--ignore=}" || failed=$?
for line in "${!lines[@]}"; do
  wait "${others[$line]}" || failed=$?
  cat "$said/$line"
done
exit "$failed"
