"""Classic BPF programs for the taps: in the kernel, keep what an experiment needs and nothing else (NET-7).

A program is a list of instructions with named targets; `assemble` makes of it the bytes the kernel takes. Pure: sockets
are agent/tap.py's. Numbers of instructions are those of linux/bpf_common.h, of offsets those of linux/filter.h.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Final

from meshctl.mesh import frames
from meshctl.mesh.model import Network

Instruction = tuple[int, int, str, str]  # code, operand, target if true, target if false; "" is the next one
Program = Sequence["Instruction | str"]  # a string names the place of what follows

_LD, _LDH, _LDB, _LDX_IHL = 0x20, 0x28, 0x30, 0xB1  # word, half, byte at an offset; X = 4 * (byte & 15)
_LDH_X, _LDB_X = 0x48, 0x50  # half, byte at X + offset
_AND, _JEQ, _JSET, _JUMP, _RET = 0x54, 0x15, 0x45, 0x05, 0x06
_PROTOCOL, _IFINDEX, _HATYPE = 0xFFFFF000, 0xFFFFF008, 0xFFFFF01C
_ARPHRD_LOOPBACK: Final = 772
_IPV4, _IPV6, _UDP = 0x0800, 0x86DD, 17
_WHOLE: Final = 0x40000  # bytes kept: all
NOTHING: Final[Program] = ((_RET, 0, "", ""),)


def assemble(program: Program) -> bytes:
    """struct sock_filter for each instruction. All jumps go forward."""
    lines: list[Instruction] = []
    where: dict[str, int] = {}
    for line in program:
        if isinstance(line, str):
            where[line] = len(lines)
        else:
            lines.append(line)
    encoded = []
    for at, (code, operand, yes, no) in enumerate(lines):
        if code == _JUMP:
            encoded.append(struct.pack("=HBBI", code, 0, 0, where[yes] - at - 1))
        else:
            ahead = [where[name] - at - 1 if name else 0 for name in (yes, no)]
            encoded.append(struct.pack("=HBBI", code, *ahead, operand))
    return b"".join(encoded)


def tap(interface: int, port: int, prefixes: Iterable[Network]) -> bytes:
    """For a packet socket without link header: on every interface but `interface` (its index), UDP to or from `port`,
    and IP packets with an address in `prefixes`. On the loopback device those are no leak: it is no wire.
    """
    by_family = {prefix.version: prefix for prefix in prefixes}
    program: list[Instruction | str] = [
        (_LD, _IFINDEX, "", ""), (_JEQ, interface, "no", ""),
        (_LD, _PROTOCOL, "", ""), (_JEQ, _IPV4, "", "six"),
        (_LD, _HATYPE, "", ""), (_JEQ, _ARPHRD_LOOPBACK, "udp4", ""),
        *_within(by_family.get(4), (12, 16), "4"),
        "udp4", (_LDB, 9, "", ""), (_JEQ, _UDP, "", "no"),
        (_LDH, 6, "", ""), (_JSET, 0x1FFF, "no", ""),
        (_LDX_IHL, 0, "", ""),
        (_LDH_X, 0, "", ""), (_JEQ, port, "yes", ""),
        (_LDH_X, 2, "", ""), (_JEQ, port, "yes", "no"),
        "six", (_JEQ, _IPV6, "", "no"),
        (_LD, _HATYPE, "", ""), (_JEQ, _ARPHRD_LOOPBACK, "udp6", ""),
        *_within(by_family.get(6), (8, 24), "6"),
        "udp6", (_LDB, 6, "", ""), (_JEQ, _UDP, "", "no"),
        (_LDH, 40, "", ""), (_JEQ, port, "yes", ""),
        (_LDH, 42, "", ""), (_JEQ, port, "yes", "no"),
        "yes", (_RET, _WHOLE, "", ""),
        "no", (_RET, 0, "", ""),
    ]  # fmt: skip
    return assemble(program)


def behind(version: int, port: int) -> bytes:
    """For a raw UDP socket, which sees what the firewall let in: to `port` only. With IPv6 it sees no IP header."""
    return assemble([*_to_port(version, port), (_RET, _WHOLE, "", ""), "no", (_RET, 0, "", "")])


def initiations(version: int, port: int) -> bytes:
    """For the same kind of socket: WireGuard's handshake initiations to `port`, known by size and type."""
    half, byte = (_LDH_X, _LDB_X) if version == 4 else (_LDH, _LDB)
    size = frames.UDP_HEAD_BYTES + frames.INITIATION_BYTES
    program: list[Instruction | str] = [
        *_to_port(version, port),
        (half, 4, "", ""), (_JEQ, size, "", "no"),
        (byte, frames.UDP_HEAD_BYTES, "", ""), (_JEQ, frames.INITIATION, "", "no"),
        (_RET, _WHOLE, "", ""),
        "no", (_RET, 0, "", ""),
    ]  # fmt: skip
    return assemble(program)


def _to_port(version: int, port: int) -> list[Instruction]:
    """Go on with what is for this port, X at the UDP header; else jump to "no"."""
    load = [(_LDX_IHL, 0, "", ""), (_LDH_X, 2, "", "")] if version == 4 else [(_LDH, 2, "", "")]
    return [*load, (_JEQ, port, "", "no")]


def _within(prefix: Network | None, offsets: Sequence[int], family: str) -> list[Instruction | str]:
    """Jump to "yes" when the address at one of `offsets` is in `prefix`."""
    lines: list[Instruction | str] = []
    if prefix is None:
        return lines
    address, mask = prefix.network_address.packed, prefix.netmask.packed
    for offset in offsets:
        other = f"not {family} at {offset}"
        words = [at for at in range(0, len(address), 4) if any(mask[at : at + 4])]
        for at in words:
            word, bits = (int.from_bytes(raw[at : at + 4], "big") for raw in (address, mask))
            lines += [(_LD, offset + at, "", ""), (_AND, bits, "", ""), (_JEQ, word, "", other)]
        lines += [(_JUMP, 0, "yes", ""), other]
    return lines
