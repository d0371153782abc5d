"""Decoding Thrift's compact protocol, as far as Parquet footers and page headers use it.

Arrow decodes them too, but pyarrow's metadata accessors end the whole process on some damaged footers (seen in pyarrow
26: a C++ exception crosses `RowGroupMetaData.column`), so the sizes that we check before reading come from here.
Format: thrift/doc/specs/thrift-compact-protocol.md of Apache Thrift.
"""

from __future__ import annotations

from typing import Any

_STOP, _TRUE, _DOUBLE = 0, 1, 7
_MAX_DEPTH = 16


class CompactDecoder:
    """Decodes structs from ``data``, starting at ``position``, which moves along.

    A struct becomes a dict from field number to value; integers become int, binaries and strings bytes, lists and
    sets list. Nothing is allocated that the bytes do not hold: a list has at least one byte per element.

    Raises:
        ValueError: the bytes are no such struct, or end inside it (`EndOfData`).
    """

    def __init__(self, data: bytes, position: int = 0) -> None:
        self.data = data
        self.position = position

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """Decode one struct."""
        if depth > _MAX_DEPTH:
            raise ValueError("it is nested too deeply")
        fields: dict[int, Any] = {}
        number = 0
        while (head := self._byte()) & 0x0F != _STOP:
            delta = head >> 4
            number = number + delta if delta else self._zigzag()
            fields[number] = self._value(head & 0x0F, depth, in_list=False)
        return fields

    def _value(self, kind: int, depth: int, in_list: bool) -> Any:
        match kind:
            case 1 | 2:  # true, false: a field's type is its value; in a list each element is a byte of its own
                return (self._byte() if in_list else kind) == _TRUE
            case 3:
                return self._byte()
            case 4 | 5 | 6:  # integers of 16, 32 and 64 bits
                return self._zigzag()
            case 7 | 8:  # double, binary
                return self._take(8 if kind == _DOUBLE else self._varint())
            case 9 | 10:  # list, set
                return self._list(depth)
            case 12:
                return self.struct(depth + 1)
            case _:  # maps, which Parquet does not use, and nonsense
                raise ValueError(f"it has a field of unknown type {kind}")

    def _list(self, depth: int) -> list[Any]:
        if depth > _MAX_DEPTH:
            raise ValueError("it is nested too deeply")
        head = self._byte()
        count = head >> 4
        if count == 0x0F:
            count = self._varint()
        if count > len(self.data) - self.position:
            raise EndOfData("it ends inside a list")
        return [self._value(head & 0x0F, depth + 1, in_list=True) for _ in range(count)]

    def _byte(self) -> int:
        if self.position >= len(self.data):
            raise EndOfData("it ends too early")
        self.position += 1
        return self.data[self.position - 1]

    def _take(self, count: int) -> bytes:
        end = self.position + count
        if end > len(self.data):
            raise EndOfData("it ends inside a value")
        self.position, start = end, self.position
        return self.data[start:end]

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise ValueError("it has an integer of more than 64 bits")

    def _zigzag(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)


class EndOfData(ValueError):  # noqa: N818 - says where, not what
    """The bytes end inside a value; more of them may decode."""
