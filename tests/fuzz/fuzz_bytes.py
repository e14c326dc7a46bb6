"""Mutations of any file, and of JSON."""

from __future__ import annotations

import random
from typing import Any

NUMBERS = (
    0, 1, -1, 2, 3, 7, 255, 256, 65535, 65536, 10**6, 2**31 - 1, -(2**31), 2**32, 2**63 - 1, -(2**63), 10**30,
    10**400,
)  # fmt: skip
TEXTS = (
    "", "a", "/", "..", "../x", "/etc/passwd", "a\0b", "\ud800", "é" * 40, "n" * 300, "x" * 100_000,
    "\x1b[2J", "{}", "%s%n", "C:\\x", "net.tflite/", "con",
)  # fmt: skip


def mutate_bytes(data: bytes, dice: random.Random) -> bytes:
    """A few random edits: flipped bits, changed bytes, numbers, cuts, repeats."""
    out = bytearray(data)
    for _ in range(dice.choice((1, 1, 2, 4, 16))):
        at = dice.randrange(len(out) + 1) if dice.random() < 0.7 else dice.randrange(min(len(out), 200) + 1)
        kind = dice.randrange(7)
        if not out:
            break
        at = min(at, len(out) - 1)
        if kind == 0:
            out[at] ^= 1 << dice.randrange(8)
        elif kind == 1:
            out[at] = dice.choice((0, 1, 0x7F, 0x80, 0xFF, dice.randrange(256)))
        elif kind == 2:
            width = dice.choice((2, 4, 8))
            number = dice.choice(NUMBERS[:16]) % (1 << 8 * width)
            out[at : at + width] = number.to_bytes(width, dice.choice(("little", "big")))
        elif kind == 3:
            del out[at : at + dice.choice((1, 4, 64, len(out)))]
        elif kind == 4:
            out[at:at] = bytes(dice.randrange(256) for _ in range(dice.choice((1, 4, 32))))
        elif kind == 5:
            piece = bytes(out[at : at + dice.choice((4, 64, 1024))])
            out[at:at] = piece * dice.choice((1, 2, 50))
        else:
            to = dice.randrange(len(out))
            out[to : to + 16] = out[at : at + 16]
    return bytes(out)


def odd_value(dice: random.Random, depth: int = 0) -> Any:
    """Some JSON."""
    kind = dice.randrange(9)
    if kind == 0:
        return dice.choice(NUMBERS)
    if kind == 1:
        return dice.choice(TEXTS)
    if kind == 2:
        return dice.choice((1e308, -1e308, 1e-320, float("nan"), float("inf"), 0.5))
    if kind == 3:
        return dice.choice((None, True, False))
    if kind == 4 and depth < 3:
        return [odd_value(dice, depth + 1) for _ in range(dice.randrange(4))]
    if kind == 5 and depth < 3:
        return {dice.choice(TEXTS): odd_value(dice, depth + 1) for _ in range(dice.randrange(4))}
    if kind == 6:
        value: Any = 1
        for _ in range(dice.choice((50, 150))):
            value = [value]
        return value
    return dice.choice(([], {}, [[]], [1, 2, 3], "text", -5))


def mutate_json(data: Any, dice: random.Random) -> Any:
    """One entry somewhere in it, changed, removed, doubled or added."""
    if isinstance(data, dict) and data and dice.random() < 0.85:
        key = dice.choice(list(data))
        if dice.random() < 0.5:
            return {**data, key: mutate_json(data[key], dice)}
        if dice.random() < 0.2:
            return {k: v for k, v in data.items() if k != key}
        if dice.random() < 0.2:
            return {**data, dice.choice(TEXTS): odd_value(dice)}
        return {**data, key: odd_value(dice)}
    if isinstance(data, list) and data and dice.random() < 0.85:
        at = dice.randrange(len(data))
        if dice.random() < 0.6:
            return [*data[:at], mutate_json(data[at], dice), *data[at + 1 :]]
        return dice.choice((data[:at], data * 2, [*data, odd_value(dice)]))
    return odd_value(dice)
