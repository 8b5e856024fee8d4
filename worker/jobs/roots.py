"""What an operator says of the directories that jobs may use: where they are, how fast, and whose their output is."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qsl, quote

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from .sizes import parse_size

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_MODE = re.compile(r"[0-7]{3,4}")


def _bytes(text: object) -> object:
    return parse_size(text) if isinstance(text, str) else text


def _octal(text: object) -> object:
    return int(text, 8) if isinstance(text, str) and _MODE.fullmatch(text) else text


class Root(BaseModel):
    """One directory under which jobs may read and write."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path
    io: Annotated[int, BeforeValidator(_bytes), Field(gt=0, strict=True)] | None = None
    """Bytes per second that all jobs of a host may copy out of it or into it together."""
    owner: str | None = None
    """The user whose its output becomes, by name or number."""
    group: str | None = None
    mode: Annotated[int, BeforeValidator(_octal), Field(strict=True)] | None = None
    """Of the files of its output; directories can be entered by whoever may read them."""

    def entry(self, name: str) -> str:
        """What `parse_root` reads."""
        given = {"io": self.io, "owner": self.owner, "group": self.group}
        options = [f"{key}={quote(str(value))}" for key, value in given.items() if value is not None]
        options += [] if self.mode is None else [f"mode={self.mode:04o}"]
        return f"{name}={self.path}" + (f"?{'&'.join(options)}" if options else "")


def parse_roots(text: str) -> dict[str, Root]:
    """`name=/path,name2=/path2?io=500M&owner=trainer&group=ml&mode=0640`; ValueError says what was expected."""
    return dict(parse_root(entry) for entry in text.split(",") if entry)


def parse_root(entry: str) -> tuple[str, Root]:
    """`name=/path` with options after a question mark; ValueError says what was expected."""
    name, _, place = entry.partition("=")
    path, _, options = place.partition("?")
    if not path or not _NAME.fullmatch(name):
        raise ValueError(f"NAME=PATH, the name made of letters, digits, - and _; not {entry!r}")
    return name, Root.model_validate({"path": Path(path).expanduser().absolute(), **_options(options)})


def paths_of(roots: Mapping[str, Root]) -> dict[str, Path]:
    """Where they are, by name."""
    return {name: root.path for name, root in roots.items()}


def named_root_of(path: Path, roots: Mapping[str, Root]) -> tuple[str, Root] | None:
    """The root that `path`, without links in it, lies under: the innermost, where one holds another."""
    holding = [item for item in roots.items() if path.is_relative_to(item[1].path.resolve())]
    return max(holding, key=lambda item: len(item[1].path.resolve().parts), default=None)


def entries_of(roots: Mapping[str, Root]) -> str:
    """What `parse_roots` reads."""
    return ",".join(root.entry(name) for name, root in roots.items())


def _options(text: str) -> dict[str, Any]:
    try:
        pairs = parse_qsl(text, strict_parsing=bool(text), keep_blank_values=True)
        options = Root.model_validate({"path": ".", **dict(pairs)})
    except ValidationError as error:
        raise ValueError(_expected(text)) from error
    except ValueError as error:
        raise ValueError(_expected(text)) from error
    _refuse_twice([key for key, _ in pairs], text)
    return options.model_dump(exclude={"path"}, exclude_none=True)


def _refuse_twice(keys: Iterable[str], text: str) -> None:
    if len(set(keys := list(keys))) < len(keys):
        raise ValueError(_expected(text))


def _expected(text: str) -> str:
    return f"io=BYTES (500M), owner=USER, group=GROUP and mode=OCTAL (0640) after the question mark, not {text!r}"
