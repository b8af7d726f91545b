#!/usr/bin/env bash
# Makes this checkout ready: Debian packages and .venv. Usage: deploy/setup.sh [tests]
# `tests` adds what the tests need (a kernel with WireGuard, an emulator, test libraries). Does nothing when all is there.
set -euo pipefail
cd "$(dirname "$0")/.."

die() { printf 'setup: %s\n  hint: %s\n' "$1" "$2" >&2; exit 5; }

[ "$(id -u)" = 0 ] || die "root is needed to install packages and to make network interfaces" "run it with sudo"
# shellcheck disable=SC1091
. /etc/os-release 2>/dev/null || true
case " ${ID:-} ${ID_LIKE:-} " in
  *" debian "*|*" ubuntu "*) ;;
  *) die "this is ${PRETTY_NAME:-an unknown system}, not Debian or Ubuntu" "use Debian 12 or later, or Ubuntu 24.04 or later" ;;
esac

packages=(python3-venv etcd-server etcd-client wireguard-go wireguard-tools nftables iproute2 iputils-ping procps openssl tcpdump)
extras=''
if [ "${1:-}" = tests ]; then
  extras='[dev]'
  packages+=(faketime prometheus)
  if [ "$(uname -m)" = x86_64 ]; then
    packages+=(qemu-system-x86 busybox-static kmod)
    # A kernel is installed only where none of those in /boot brings WireGuard.
    kernel=linux-image-cloud-amd64
    [ "$ID" != ubuntu ] || kernel=linux-image-virtual
    for image in /boot/vmlinuz-*; do
      compgen -G "/lib/modules/${image#/boot/vmlinuz-}/kernel/drivers/net/wireguard/wireguard.ko*" >/dev/null && kernel=''
    done
    packages+=(${kernel:+"$kernel"})
  fi
fi

missing() {
  local package installed
  installed=$(dpkg-query -W -f '${Package} ${Status}\n' "${packages[@]}" 2>/dev/null | sed -n 's/ install ok installed$//p' || true)
  for package in "${packages[@]}"; do
    grep -qxF "$package" <<<"$installed" || printf '%s ' "$package"
  done
}

install_packages() (
  # Debian starts the services it installs; one that nobody asked for must not run, now or after a reboot.
  policy=/usr/sbin/policy-rc.d
  local package fresh=()
  for package in etcd-server prometheus; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -qx 'install ok installed' || fresh+=("${package%-server}.service")
  done
  # shellcheck disable=SC2317
  restore() {
    rm -f "$policy"
    [ ! -e "$policy.meshctl" ] || mv "$policy.meshctl" "$policy"
  }
  trap restore EXIT
  # What a killed run left behind is ours, not the administrator's.
  [ ! -e "$policy" ] || grep -q 'meshctl setup' "$policy" || mv "$policy" "$policy.meshctl"
  printf '#!/bin/sh\n# meshctl setup\nexit 101\n' >"$policy"
  chmod 755 "$policy"
  export DEBIAN_FRONTEND=noninteractive
  apt-get -qq -o DPkg::Lock::Timeout=300 update || exit
  apt-get -qq -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 install --no-install-recommends -y "$@" || exit
  if command -v systemctl >/dev/null; then
    for package in "${fresh[@]}"; do
      systemctl disable --quiet "$package" 2>/dev/null || true  # it may not be among those installed
    done
  fi
)

mkdir -p .work
read -ra wanted <<<"$(missing)"
if [ ${#wanted[@]} -gt 0 ]; then
  echo "setup: installing ${wanted[*]}"
  if ! install_packages "${wanted[@]}" </dev/null >.work/apt.log 2>&1; then
    tail -n 5 .work/apt.log >&2
    die "apt could not install ${wanted[*]}" "is there a network? the whole story is in .work/apt.log"
  fi
fi

python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  die "$(python3 --version) is too old: 3.11 is needed" "use Debian 12 or later, or Ubuntu 24.04 or later"
stamp=$( (pwd; python3 --version; cat pyproject.toml) | sha256sum)
if ! grep -qsxF -e "$extras $stamp" -e "[dev] $stamp" .venv/setup.stamp; then
  echo "setup: making .venv"
  rm -f .venv/setup.stamp
  if ! { python3 -m venv .venv && .venv/bin/pip install --disable-pip-version-check -e ".$extras"; } </dev/null >.work/pip.log 2>&1; then
    tail -n 5 .work/pip.log >&2
    die "pip could not install the libraries into .venv" "is there a network? the whole story is in .work/pip.log"
  fi
  echo "$extras $stamp" >.venv/setup.stamp
fi
