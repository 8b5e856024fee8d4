"""The store's Lua scripts, by name: each is one transition, preceded by what they share."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from redis import Redis
from redis.commands.core import Script

_FOLDER = Path(__file__).parent / "lua"
_SHARED = ("shared", "slots", "moves", "record", "parts")


class Scripts:
    """Runs scripts with named arguments. The server keeps them by digest; a restarted one is sent them anew."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._registered: dict[str, Script] = {}

    def run(self, name: str, given: Mapping[str, object]) -> Any:
        """Run `name`.lua; arguments that are None are left out, since Lua has no null that reads well."""
        if name not in self._registered:
            self._registered[name] = self._redis.register_script(_source(name))
        arguments = {key: value for key, value in given.items() if value is not None}
        return self._registered[name](args=[json.dumps(arguments)])


@cache
def _source(name: str) -> str:
    return "\n".join((_FOLDER / f"{part}.lua").read_text() for part in (*_SHARED, name))
