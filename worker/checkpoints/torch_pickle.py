"""Torch's pickles without torch: read as inert stand-ins, so that nothing in them can run; written opcode by opcode."""

import io
import pickle
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, cast

from .dtypes import BY_TORCH


class Inert:
    """Stands in for an object of any class: remembers the class name, the arguments and the state, and does nothing."""

    name = ""
    # Class attributes, since unpickling makes most objects without __init__.
    arguments: tuple[Any, ...] = ()
    state: "dict[str, Any] | tuple[Any, ...] | None" = None

    def __init__(self, *arguments: object) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __call__(self, *arguments: object) -> "Inert":
        """What it would make is inert too."""
        return Inert(*arguments)

    def __setitem__(self, key: object, value: object) -> None:
        """What a mapping of its own class would hold is forgotten."""

    def append(self, value: object) -> None:
        """So is what a list of its own class would hold."""

    def attribute(self, name: str) -> Any:
        """A field of the pickled object, None where it was not set."""
        return self.state.get(name) if isinstance(self.state, dict) else None


def read_inert(data: bytes | memoryview, persistent: Callable[[tuple[Any, ...]], object] | None = None) -> Any:
    """The pickled value, with plain containers as they are and every other object as an `Inert`.

    `persistent` answers torch's storage references. pickle.UnpicklingError (or another of pickle's own errors)
    where the bytes are no pickle.
    """
    return _InertUnpickler(io.BytesIO(data), persistent).load()


class _InertUnpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, persistent: Callable[[tuple[Any, ...]], object] | None) -> None:
        super().__init__(file)
        self._persistent = persistent

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """Never imports anything."""
        plain = _PLAIN.get((module_name, global_name))
        if plain is not None:
            return plain
        if module_name == "torch" and global_name in BY_TORCH:
            return global_name
        return type(global_name, (Inert,), {"name": f"{module_name}.{global_name}"})

    def persistent_load(self, pid: Any) -> Any:
        if self._persistent is None:
            raise pickle.UnpicklingError("a storage reference where none belongs")
        return self._persistent(pid)


class _Dict(dict[Any, Any]):
    """May be given attributes: torch puts `_metadata` on state dicts."""


def _filled_by_default(*arguments: object) -> _Dict:
    return _Dict()


def _first(value: object = None) -> object:
    return value


_PLAIN: dict[tuple[str, str], Callable[..., object]] = {
    ("torch", "Size"): tuple,
    ("collections", "OrderedDict"): _Dict,
    ("collections", "defaultdict"): _filled_by_default,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
    ("torch.serialization", "_get_layout"): _first,
    ("pathlib", "PosixPath"): PurePosixPath,
    ("pathlib._local", "PosixPath"): PurePosixPath,
}


@dataclass(frozen=True, slots=True)
class Global:
    """A class or function, by name."""

    module: str
    name: str


@dataclass(frozen=True, slots=True)
class Call:
    """`function(*arguments)`."""

    function: Global
    arguments: tuple[object, ...]


@dataclass(frozen=True, slots=True)
class New:
    """An instance of `cls` whose `__dict__` (or `__setstate__`) is given `state`."""

    cls: Global
    state: object


@dataclass(frozen=True, slots=True)
class Pairs:
    """A dict whose keys are objects too."""

    items: tuple[tuple[object, object], ...]


@dataclass(frozen=True, slots=True)
class Persistent:
    """A storage reference of a `torch.save` file."""

    reference: tuple[object, ...]


def write(value: object) -> bytes:
    """Protocol 2, which `torch.load(weights_only=True)` reads too."""
    writer = _Writer()
    writer.put(value)
    return b"\x80\x02" + bytes(writer.out) + b"."


@dataclass(slots=True)
class _Writer:
    out: bytearray = field(default_factory=bytearray)
    memo: dict[str | Global, int] = field(default_factory=dict[str | Global, int])

    def put(self, value: object) -> None:
        match value:
            case None:
                self.out += b"N"
            case bool():
                self.out += b"\x88" if value else b"\x89"
            case int():
                self._integer(value)
            case float():
                self.out += b"G" + struct.pack(">d", value)
            case str() | Global():
                self._remembered(value)
            case tuple() | list() | dict():
                self._container(cast("tuple[object, ...] | list[object] | dict[object, object]", value))
            case Call(function, arguments):
                self._all(function, arguments, code=b"R")
            case New(cls, state):
                self._all(cls, (), code=b"\x81")
                self._all(state, code=b"b")
            case Pairs(items):
                self.out += b"}("
                self._all(*(half for pair in items for half in pair), code=b"u")
            case Persistent(reference):
                self._all(reference, code=b"Q")
            case _:
                raise TypeError(f"cannot write {type(value).__name__} into a torch pickle")

    def _all(self, *values: object, code: bytes) -> None:
        for value in values:
            self.put(value)
        self.out += code

    def _integer(self, value: int) -> None:
        if -(2**31) <= value < 2**31:
            self.out += b"J" + struct.pack("<i", value)
            return
        encoded = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
        self.out += b"\x8a" + bytes([len(encoded)]) + encoded

    def _remembered(self, value: "str | Global") -> None:
        number = self.memo.get(value)
        if number is not None:
            self.out += b"j" + struct.pack("<I", number)
            return
        if isinstance(value, Global):
            self.out += f"c{value.module}\n{value.name}\n".encode()
        else:
            encoded = value.encode()
            self.out += b"X" + struct.pack("<I", len(encoded)) + encoded
        self.memo[value] = len(self.memo)
        self.out += b"r" + struct.pack("<I", self.memo[value])

    def _container(self, value: "tuple[object, ...] | list[object] | dict[object, object]") -> None:
        match value:
            case tuple():
                self.out += b"("
                self._all(*value, code=b"t")
            case list():
                self.out += b"]("
                self._all(*value, code=b"e")
            case dict():
                self.out += b"}("
                self._all(*(half for pair in value.items() for half in pair), code=b"u")
