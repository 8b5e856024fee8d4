"""Plain values as YAML."""

from collections.abc import Iterator, Mapping
from typing import cast


def yaml_text(document: Mapping[str, object], heading: str = "") -> bytes:
    """In the order given, tuples as lists; `heading` becomes comment lines on top."""
    import yaml  # only setups write any

    comments = "".join(f"# {line}\n" for line in heading.splitlines())
    return (comments + yaml.safe_dump(_plain(document), sort_keys=False, width=120)).encode()


def paths_in(document: Mapping[str, object], prefix: str = "") -> Iterator[str]:
    """`a.b.c` of every value."""
    for name, value in document.items():
        if isinstance(value, Mapping) and value:
            yield from paths_in(cast("Mapping[str, object]", value), f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _plain(value: object) -> object:
    match value:
        case Mapping():
            return {name: _plain(inner) for name, inner in cast("Mapping[str, object]", value).items()}
        case list() | tuple():
            return [_plain(inner) for inner in cast("list[object]", value)]
        case _:
            return value
