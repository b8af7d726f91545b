#!/bin/sh
# Boots a kernel that has WireGuard in an emulator (no KVM needed) and runs there, on this file system, read-only:
# the contract suite of the device with the kernel adapter, and the reconcile bench. About two minutes.
#   tests/vm/run.sh [KERNEL]      prints everything; exit code 0 only if the suite passed in the VM
# Needs: qemu-system-x86, busybox-static, kmod, virtme-ng (pip install '.[vm]'), a kernel with modules in /boot.
set -eu
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
kernel=${1:-$(find /boot -name 'vmlinuz-*' | sort | tail -n 1)}
suite="$python -B -m pytest -p no:cacheprovider -q tests/contract/test_device.py tests/contract/test_guard.py -k kernel"
bench="$python -B tests/bench/reconcile.py kernel 100 1000"
inside="modprobe wireguard && mkdir -p /run/netns && $suite && $bench && echo vm-verdict: passed || echo vm-verdict: failed"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# A pipe, because with a file as its output the VM loses lines.
"$python" -m virtme.commands.run --help >/dev/null 2>&1 || { echo "virtme-ng is not installed" >&2; exit 2; }
vng=$(dirname "$(command -v "$python")")/vng
[ -x "$vng" ] || vng=vng
"$vng" -r "$kernel" --disable-kvm --force-9p --memory 1G --rwdir /tmp -- "$inside" 2>&1 | tee "$log"
grep -q 'vm-verdict: passed' "$log"
