"""A real kernel WireGuard, in an emulated machine of our own making: the device's contract, a rotation, the wire.

    python tests/vm/run.py [device|rotation|wire] [KERNEL]      KERNEL: the newest in /boot by default

`device` is the contract suite and its bench; `rotation` a whole mesh, etcd and coordinator included, that rotates all
keys under traffic (tests/bench/rotation.py), at a rate that emulation carries; `wire` the experiments on the wire, and
the faults that they find, on a mesh of two.

The image is an initramfs with this Python, the few packages and tools the suite needs, and the kernel's network
modules: no disk, network or file of the host is shared with the machine, and neither KVM nor 9p is needed (Debian's
cloud kernels have no 9p). Prints what the machine prints; exit code 0 only if the suite passed there and the bench ran.
Needs qemu-system-x86, busybox-static, kmod, a kernel with modules.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PASSED = "vm-verdict: passed"
TIME_LIMIT_S = 1500
PACKAGES = (
    "pytest",
    "_pytest",
    "pluggy",
    "iniconfig",
    "packaging",
    "pytest_asyncio",
    "pygments",
    "pyroute2",
    "cryptography",
    "cffi",
)
TOOLS = ("ip", "nft", "wg", "wireguard-go", "modprobe", "sysctl", "busybox")
MODULES = ("net", "lib", "crypto", "arch/x86/crypto", "drivers/net", "drivers/char")
MESH_PACKAGES = (
    "click", "etcd3aio", "google", "grpc", "grpc_health", "msgspec", "prometheus_client", "uvloop",
)  # fmt: skip
MESH_TOOLS = ("etcd",)
SUITE = (
    "python -B -m pytest -p no:cacheprovider -q --color=no --tb=short --durations=5"
    " tests/contract/test_device.py tests/contract/test_look.py tests/contract/test_guard.py -k kernel"
)
BENCH = "python -B tests/bench/reconcile.py"
ROTATION = "python -B -m tests.bench.rotation --runs 4 --enough 2 --rate 20 --nodes 3 --udp-only"
WIRE = (
    "python -B -m pytest -p no:cacheprovider -q --color=no --tb=short tests/netns/test_witness.py"
    " -k 'healthy or copies or leak or twice or strangers or widened'"
)
WORK = {"device": f"{SUITE} && {BENCH} kernel 100 1000", "rotation": ROTATION, "wire": WIRE}

INIT = f"""#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /run; mount -t tmpfs tmpfs /tmp
export PATH=/usr/bin:/bin PYTHONHOME=/python PYTHONPATH=/packages HOME=/root
ip link set lo up; modprobe tun; modprobe wireguard; mkdir -p /run/netns /run/wireguard
cd /repository
export MESHCTL_TESTS_PATIENCE=10
WORK && echo "{PASSED}"
poweroff -f
"""


def libraries(binaries: Iterable[Path]) -> set[Path]:
    """Shared objects these need, by ldd."""
    said = subprocess.run(["ldd", *map(str, binaries)], capture_output=True, text=True, check=False).stdout
    return {Path(found) for found in re.findall(r"(/\S+)(?= \(0x)", said)}


def put(root: Path, source: Path, at: str = "") -> None:
    """Copy a file to the same place, or to `at`, under `root`."""
    target = root / (at or str(source)).lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, target, follow_symlinks=True)


def tree(root: Path, release: str, what: str) -> None:
    """Everything the machine has."""
    for directory in ("proc", "sys", "dev", "run", "tmp", "bin", "usr/bin", "var", "root", "repository", "sbin"):
        (root / directory).mkdir(parents=True, exist_ok=True)
    (root / "var/run").symlink_to("/run")
    (root / "init").write_text(INIT.replace("WORK", WORK[what]))
    (root / "init").chmod(0o755)

    skip = shutil.ignore_patterns(
        "__pycache__", "test", "tests", "idlelib", "tkinter", "ensurepip", "lib2to3", "site-packages", "*.a", "config-*"
    )
    stdlib, site = Path(sysconfig.get_path("stdlib")), Path(sysconfig.get_path("purelib"))
    shutil.copytree(stdlib, root / "python/lib" / stdlib.name, ignore=skip)
    put(root, Path(sys.executable).resolve(), "/usr/bin/python")
    home = root / str(stdlib).lstrip("/")  # where an isolated Python, such as etcd's launcher, looks
    home.parent.mkdir(parents=True, exist_ok=True)
    home.symlink_to(f"/python/lib/{stdlib.name}")
    cache = shutil.ignore_patterns("__pycache__")
    for package in (*PACKAGES, *(MESH_PACKAGES if what != "device" else ())):
        shutil.copytree(site / package, root / "packages" / package, ignore=cache)
    for extra in (
        *site.glob("pytest_asyncio-*.dist-info"),
        *site.glob("etcd3aio-*.dist-info"),  # it asks for its own version
        *site.glob("_cffi_backend*"),
        *site.glob("typing_extensions.py"),
        *site.glob("py.py"),
    ):
        (shutil.copytree if extra.is_dir() else shutil.copy2)(extra, root / "packages" / extra.name)
    for name in ("meshctl", "coordinator", "deploy", "tests"):
        shutil.copytree(REPOSITORY / name, root / "repository" / name, ignore=cache)
    put(root, REPOSITORY / "pyproject.toml", "/repository/pyproject.toml")

    for tool in (*TOOLS, *(MESH_TOOLS if what != "device" else ())):
        put(root, Path(shutil.which(tool) or tool), "/bin/busybox" if tool == "busybox" else f"/usr/bin/{tool}")
    (root / "sbin/modprobe").symlink_to("/usr/bin/modprobe")  # where the kernel looks for it
    binaries = [
        path for path in root.rglob("*") if path.is_file() and (path.suffix == ".so" or path.parent == root / "usr/bin")
    ]
    for library in libraries(binaries):
        put(root, library)

    modules = Path("/lib/modules") / release
    for part in MODULES:
        if (modules / "kernel" / part).exists():
            shutil.copytree(modules / "kernel" / part, root / f"lib/modules/{release}/kernel" / part)
    for index in modules.glob("modules.*"):
        put(root, index, f"/lib/modules/{release}/{index.name}")


def main() -> int:
    """Build, boot, watch."""
    newest = max(Path("/boot").glob("vmlinuz-*"), default=None, key=lambda path: path.stat().st_mtime)
    words = sys.argv[1:]
    what = words.pop(0) if words and words[0] in WORK else "device"
    kernel = Path(words[0]) if words else newest
    if kernel is None:
        print("no kernel in /boot: apt-get install --no-install-recommends linux-image-cloud-amd64", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as scratch:
        root, image = Path(scratch, "root"), Path(scratch, "image")
        root.mkdir()
        tree(root, kernel.name.removeprefix("vmlinuz-"), what)
        names = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
        with image.open("wb") as out:
            subprocess.run(
                ["busybox", "cpio", "-o", "-H", "newc"], cwd=root, input=names.encode(), stdout=out, check=True
            )
        command = [
            "qemu-system-x86_64", "-kernel", str(kernel), "-initrd", str(image),
            # Else every look at the clock, some thousand a second, is a trap to an emulated timer.
            "-append", "console=ttyS0 panic=-1 quiet clocksource=tsc tsc=reliable mitigations=off",
            "-m", "2G", "-smp", str(min(os.cpu_count() or 1, 2)), "-accel", "tcg,thread=multi", "-cpu", "max",
            "-nographic", "-no-reboot", "-nic", "none",
        ]  # fmt: skip
        with_us = ("setpriv", "--pdeathsig", "KILL")  # an interrupted suite kills us, and nobody would end the machine
        machine = subprocess.Popen(
            [*with_us, "timeout", str(TIME_LIMIT_S), *with_us, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        assert machine.stdout
        passed = False
        for line in machine.stdout:
            print(line, end="", flush=True)
            passed |= PASSED in line
        machine.wait()
    return 0 if passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
