"""How deep and how large what a pickle describes would be, counted without building it.

The instructions are followed on a stack of numbers, one for each object. References make a graph of it:
ten lists, each of ten references to the one before, are ten billion entries when they are written out,
and a text that is turned into bytes a thousand times is a thousand texts.
"""

from __future__ import annotations

import pickletools
from typing import Any

DEEPEST = 64  # containers within containers; recordings have five
MOST_OBJECTS = 5_000_000  # each reference counted anew
GROWTH = 16  # times the size of the file that arrays and calls may copy; object arrays take three
SPARE = 1 << 24  # bytes, so that small files are not measured too closely

_LISTED = ("TUPLE", "LIST", "DICT", "FROZENSET")  # take all down to the mark, and are one object
_ADDED = ("APPENDS", "SETITEMS", "ADDITEMS")  # the same, and are put into the object below
_KEPT = ("APPEND", "SETITEM")  # one or two are put into the object below
_NAMES = {"GLOBAL": 0, "STACK_GLOBAL": 2, "REDUCE": 2, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_MARK = -1


class TooLarge(ValueError):
    """What a pickle describes is too deep or too large."""


class Shape:
    """The objects of a pickle as numbers: what each holds, and how many bytes stand in the file.

    Parameters
    ----------
    size : int, bytes of the file
    """

    def __init__(self, size: int) -> None:
        self._limit = GROWTH * size + SPARE
        self._stack: list[int] = []
        self._memo: dict[int, int] = {}
        self._holds: list[list[int] | None] = []  # None: nothing can be in it
        self._bytes: list[int] = []
        self._copied: list[int] = []  # arguments of calls and states: what is in them is copied

    def follow(self, opcode: pickletools.OpcodeInfo, value: Any) -> None:
        """Do to the stack what an instruction does to it.

        Raises
        ------
        TooLarge
            More objects than `MOST_OBJECTS`.
        ValueError
            The stack does not hold what the instruction takes.
        """
        name, stack = opcode.name, self._stack
        if name in ("PROTO", "FRAME"):
            return
        if name == "MARK":
            stack.append(_MARK)
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self._memo[value] = self._top()
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = self._top()
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            if value not in self._memo:
                raise ValueError(f"{name} {value}: nothing was stored there")
            stack.append(self._memo[value])
        elif name in ("POP", "STOP"):
            stack.pop() if stack else self._top()
        elif name == "POP_MARK":
            self._above_mark()
        elif name == "DUP":
            stack.append(self._top())
        elif name in _LISTED:
            self._new(self._above_mark())
        elif name in _ADDED:
            self._put(self._above_mark())
        elif name in _KEPT:
            self._put(self._take(1 if name == "APPEND" else 2))
        elif name == "BUILD":
            self._copied.append(self._top())
            self._put(self._take(1))
        elif name in _NAMES:
            parts = self._take(_NAMES[name])
            self._new(parts)
            if name == "REDUCE":
                self._copied.append(parts[1])
        elif name.startswith("EMPTY_"):
            self._new([])
        else:  # a number, a text, None: its bytes stand in the instruction
            length = len(value) if isinstance(value, str | bytes | bytearray) else 8
            self._new(None, length)
        if name == "STOP" and stack:
            raise ValueError("something is left on the stack")

    def check(self) -> None:
        """Refuse what is too deep, refers to itself, or would grow far beyond its file.

        Raises
        ------
        TooLarge
        """
        depth, weight, number = [0] * len(self._holds), list(self._bytes), [1] * len(self._holds)
        state = bytearray(len(self._holds))  # 1: being looked at, 2: done
        for root in range(len(self._holds)):
            waiting = [root] if not state[root] else []
            while waiting:
                at = waiting[-1]
                parts = self._holds[at] or ()
                if state[at] == 0:
                    state[at] = 1
                    waiting += [part for part in parts if not state[part]]
                    if any(state[part] == 1 for part in parts):
                        raise TooLarge("holds something that contains itself")
                    continue
                waiting.pop()
                if state[at] == 1:
                    state[at] = 2
                    if parts:
                        depth[at] = 1 + max(depth[part] for part in parts)
                        weight[at] += sum(weight[part] for part in parts)
                        number[at] += sum(number[part] for part in parts)
                    if depth[at] > DEEPEST or number[at] > MOST_OBJECTS:
                        raise TooLarge(
                            f"holds containers within containers, {depth[at]} deep and "
                            f"{number[at]} in all, where {DEEPEST} and {MOST_OBJECTS} are the most"
                        )
        copied = sum(weight[at] for at in self._copied)
        if copied > self._limit:
            raise TooLarge(
                f"would take {copied / 1e9:.1f} GB, many times its own size: it uses the same bytes "
                "again and again"
            )

    def _new(self, holds: list[int] | None, n_bytes: int = 8) -> None:
        if len(self._holds) >= MOST_OBJECTS:
            raise TooLarge(f"holds more than {MOST_OBJECTS} objects")
        self._stack.append(len(self._holds))
        self._holds.append(holds)
        self._bytes.append(n_bytes)

    def _top(self) -> int:
        if not self._stack or self._stack[-1] == _MARK:
            raise ValueError("nothing is on the stack")
        return self._stack[-1]

    def _take(self, n: int) -> list[int]:
        parts = self._stack[len(self._stack) - n :] if n else []
        if len(parts) < n or _MARK in parts:
            raise ValueError("too little is on the stack")
        del self._stack[len(self._stack) - n :]
        return parts

    def _put(self, parts: list[int]) -> None:
        holder = self._holds[self._top()]
        if holder is None:
            raise ValueError("something is put into what holds nothing")
        holder += parts

    def _above_mark(self) -> list[int]:
        parts = []
        while self._stack:
            if (at := self._stack.pop()) == _MARK:
                return parts[::-1]
            parts.append(at)
        raise ValueError("no mark is on the stack")
