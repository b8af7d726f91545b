#!/usr/bin/env bash
# The whole suite on real parts: sudo tests/run.sh [pytest arguments]. A test skipped for a part that is not absent is a failure.
set -euo pipefail
cd "$(dirname "$0")/.."
deploy/setup.sh tests
pytest=(.venv/bin/python -m pytest -p tests.noskip)
[ $# -eq 0 ] || exec "${pytest[@]}" "$@"

# What takes minutes and mostly waits runs beside the rest: together they take half the time.
beside=(tests/vm tests/netns/test_psk.py tests/attacks/test_quiet.py tests/attacks/test_ageing.py)
said=$(mktemp)
set -m # else bash has it ignore the Ctrl-C that the trap passes on
nice -n 5 "${pytest[@]}" "${beside[@]}" </dev/null >"$said" 2>&1 &
other=$!
set +m
trap 'kill -INT "$other" 2>/dev/null || true; wait "$other" || true; rm -f "$said"' EXIT
failed=0
"${pytest[@]}" "${beside[@]/#/--ignore=}" || failed=$?
wait "$other" || failed=$?
cat "$said"
exit "$failed"
