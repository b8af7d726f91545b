"""Runs the demo: `run.py [--keep | --clean]`, started by deploy/demo.sh, which installs what is needed first.

Exit codes: 0 every claim held, 1 one did not, 5 this machine does not allow it, 130 interrupted. Whatever happens, what
was made is taken away again.
"""

import fcntl
import signal
import sys
from pathlib import Path

import lab
import show
from claims import Demo

LOCK = Path("/run/meshctl-demo.lock")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
KEPT = """   it runs on. Try:
     ip netns exec md-a1 {bin}/meshctl status --state-dir {root}/gpu-a1
     ip netns exec md-a1 {bin}/meshctl ping gpu-b1 --state-dir {root}/gpu-a1
     ip netns exec md-a1 {bin}/meshctl logs --state-dir {root}/gpu-a1
     ip netns exec md-coord {bin}/mesh-coordinator nodes list --data-dir {root}/coordinator
   End it: sudo deploy/demo.sh --clean"""


def interrupted(*_: object) -> None:
    """A signal handler: threads that wait give up, and the main one unwinds."""
    lab.cancelled.set()
    raise KeyboardInterrupt


def play(keep: bool) -> int:
    """All phases. Without the first two there is nothing to show; a later one that breaks costs its claim."""
    show.heading("Two providers, a router between them")
    lab.build()
    show.note("provider A  198.51.100.0/24   coordinator .10, gpu-a1 .11, gpu-a2 .12")
    show.note("provider B  203.0.113.0/24    gpu-b1 .11, gpu-b2 .12        each a network namespace of its own")
    demo = Demo()
    for phase in (
        demo.coordinator_starts, demo.four_nodes_join, demo.weak_ciphers_are_refused, demo.pairs_agree,
        demo.coordinator_dies, demo.keys_rotate, demo.hands_that_are_not_ours, demo.a_node_is_revoked,
        demo.what_is_written_down,
    ):  # fmt: skip
        title = phase.__name__.replace("_", " ").capitalize()
        show.heading(title)
        try:
            phase()
        except lab.Fault as fault:
            if lab.cancelled.is_set():
                raise KeyboardInterrupt from None
            show.claim(title, False, str(fault))
            if not demo.joined:
                last_words()
                break
    show.heading("End")
    if keep:
        print(KEPT.format(bin=lab.BIN, root=lab.ROOT))
    else:
        demo.nothing_is_left()
    return show.last()


def last_words() -> None:
    """What those who did not come up said last."""
    for path in sorted((lab.ROOT / "logs").iterdir()):
        for line in path.read_text(errors="replace").splitlines()[-3:]:
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
    if any(lab.leftovers()):
        print("demo: what an earlier run left is removed")
        lab.remove()
    if wish == "--clean":
        return 0
    for number in SIGNALS:
        signal.signal(number, interrupted)
    kept = False
    try:
        code = play(wish == "--keep")
        kept = wish == "--keep"
        return code
    except KeyboardInterrupt:
        print("\ndemo: interrupted, cleaning up", file=sys.stderr)
        return 130
    except lab.Fault as fault:
        print(f"demo: {fault}\n  hint: network namespaces are needed: use a virtual machine", file=sys.stderr)
        return 5
    finally:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        if not kept:
            lab.remove()


if __name__ == "__main__":
    sys.exit(main())
