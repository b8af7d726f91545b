"""Runs the demo: `run.py [--keep | --clean]`, started by deploy/demo.sh, which installs what is needed first.

Exit codes: 0 every claim held, 1 not every one, 5 this machine does not allow it, 130 interrupted. Whatever happens,
what was made is taken away again.
"""

from __future__ import annotations

import fcntl
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import lab
import show
from claims import Demo

LOCK = Path("/run/meshctl-demo.lock")


def interrupted(*_: object) -> None:
    lab.cancelled.set()
    raise KeyboardInterrupt


def play(demo: Demo, keep: bool) -> int:
    """All phases. The first two must work; a later one that breaks costs its claim and the next one goes on."""
    show.heading("Two providers, a router between them, four machines and a coordinator")
    lab.build()
    show.note("provider A 198.51.100.0/24: coordinator .10, gpu-a1 .11, gpu-a2 .12")
    show.note("provider B 203.0.113.0/24:  gpu-b1 .11, gpu-b2 .12;  each a network namespace of its own")
    phases: list[tuple[str, Callable[[], None]]] = [
        ("A mesh", demo.coordinator_starts),
        ("Four nodes join", demo.nodes_join),
        ("The control connection", demo.weaker_is_refused),
        ("Coordinator and etcd die under traffic", demo.coordinator_dies),
        ("Somebody else's hands", demo.hands_off),
        ("Out", demo.node_is_revoked),
        ("At rest", demo.nothing_in_clear),
    ]
    for number, (title, phase) in enumerate(phases):
        show.heading(title)
        try:
            phase()
        except (lab.Fault, KeyError) as fault:
            if lab.cancelled.is_set():
                raise KeyboardInterrupt from None
            show.claim(title, False, f"{fault}")
            if number < 2:
                last_words()
                break
    show.heading("End")
    if keep:
        print(KEPT.format(program=lab.BIN / "meshctl", operator=lab.BIN / "mesh-coordinator", root=lab.ROOT))
    else:
        demo.nothing_is_left()
    return show.last()


KEPT = """   it keeps running. Try:
     ip netns exec md-a1 {program} status --state-dir {root}/gpu-a1
     ip netns exec md-a1 {program} ping gpu-b1 --state-dir {root}/gpu-a1
     ip netns exec md-coord {operator} nodes list --data-dir {root}/coordinator
   end it:
     deploy/demo.sh --clean"""


def last_words() -> None:
    """What those who did not come up said last."""
    for path in sorted((lab.ROOT / "logs").glob("*.log")):
        for line in path.read_text(errors="replace").splitlines()[-4:]:
            show.note(f"{path.name}: {line}")


def main() -> int:
    """See the module."""
    wish = sys.argv[1] if len(sys.argv) > 1 else ""
    lock = LOCK.open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("demo: another demo runs on this machine\n  hint: wait for it, or stop it with Ctrl-C", file=sys.stderr)
        return 5
    if lab.leftovers():
        print("demo: an earlier run is cleaned up")
        lab.remove()
    if wish == "--clean":
        return 0
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupted)
    keep = False
    try:
        keep = wish == "--keep"
        return play(Demo(), keep)
    except KeyboardInterrupt:
        keep = False
        print("\ndemo: interrupted, cleaning up", file=sys.stderr)
        return 130
    except lab.Fault as fault:
        keep = False
        print(f"demo: {fault}\n  hint: network namespaces and a router are needed: use a virtual machine or a privileged container", file=sys.stderr)
        return 5
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        if not keep:
            lab.remove()


if __name__ == "__main__":
    sys.exit(main())
