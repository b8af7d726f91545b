#!/usr/bin/env bash
# The whole suite on real parts: sudo tests/run.sh [pytest arguments]. A test skipped for a part that is not absent is a failure.
set -euo pipefail
cd "$(dirname "$0")/.."
deploy/setup.sh tests
exec .venv/bin/python -m pytest -p tests.noskip "$@"
