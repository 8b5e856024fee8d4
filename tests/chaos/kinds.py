"""The one table of what is submitted: each kind of job with good input, and the bad inputs with their codes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Spec = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """Jobs that differ in their target alone."""

    name: str
    share: int
    """Of all jobs, relative to the others."""
    spec: Spec
    """Without its target."""
    writes: bool = True
    """Whether it takes a target, and leaves a folder with a manifest there."""
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What `Client.submit` takes beside spec, labels and key: here go priority, timeout_seconds, memory_bytes, ..."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bad(Kind):
    """Jobs that must fail at their first attempt, with this code."""

    code: str


# Before the chaos, one job of each kind runs undisturbed into `data:reference-<name>`, in this order: what later ones
# must equal, and what they may read.
KINDS: tuple[Kind, ...] = (
    Kind(name="config", share=4, spec={"kind": "config", "source": "data:small"}, writes=False),
    Kind(name="import-small", share=5, spec={"kind": "import", "source": "data:small"}),
    Kind(name="import-large", share=4, spec={"kind": "import", "part_bytes": 2**20, "source": "data:large"}),
    Kind(name="import-iteration", share=2, spec={"kind": "import", "source": "data:small", "iteration": 12}),
    Kind(name="export-small", share=5, spec={"kind": "export", "source": "data:reference-import-small"}),
    Kind(
        name="export-shards",
        share=4,
        spec={"kind": "export", "source": "data:reference-import-large", "max_shard_bytes": 2_000_000},
    ),
    Kind(
        name="adapter-import",
        share=2,
        spec={"kind": "adapter", "action": "import", "source": "data:adapter", "base": "data:small"},
    ),
    Kind(
        name="adapter-export",
        share=2,
        spec={"kind": "adapter", "action": "export", "source": "data:reference-adapter-import"},
    ),
    Kind(
        name="merge",
        share=4,
        spec={"kind": "merge", "source": "data:small", "adapters": [{"path": "data:adapter"}], "part_bytes": 2**20},
    ),
    Kind(
        name="merge-megatron",
        share=3,
        spec={
            "kind": "merge",
            "source": "data:reference-import-small",
            "adapters": [{"path": "data:reference-adapter-import"}],
            "to": "megatron",
        },
    ),
    Kind(
        name="adapter-extract",
        share=2,
        spec={
            "kind": "adapter",
            "action": "extract",
            "source": "data:small",
            "tuned": "data:reference-merge",
            "rank": 4,
        },
    ),
    Kind(
        name="setup-linked",
        share=3,
        spec={
            "kind": "setup",
            "source": "data:reference-import-small",
            "profile": "megatron-bridge",
            "peft": {"dim": 4, "init_adapter": True},
        },
    ),
    Kind(
        name="setup-imported",
        share=3,
        spec={"kind": "setup", "source": "data:small", "profile": "verl", "dtype": "bf16"},
    ),
    Kind(name="verify", share=2, spec={"kind": "verify", "source": "data:reference-import-large"}, writes=False),
    Kind(
        name="verify-formats",
        share=2,
        spec={"kind": "verify", "source": "data:large", "against": "data:reference-import-large"},
        writes=False,
    ),
)

BAD: tuple[Bad, ...] = (
    Bad(
        name="config-unknown-field",
        share=1,
        spec={"kind": "config", "source": "data:unknown-field"},
        writes=False,
        code="unknown_config_field",
    ),
    Bad(
        name="import-unknown-field",
        share=1,
        spec={"kind": "import", "source": "data:unknown-field"},
        code="unknown_config_field",
    ),
    Bad(
        name="import-missing-tensor",
        share=2,
        spec={"kind": "import", "source": "data:missing-tensor"},
        code="missing_tensor",
    ),
    Bad(
        name="verify-another",
        share=1,
        spec={"kind": "verify", "source": "data:small", "against": "data:reference-import-large"},
        writes=False,
        code="not_verified",
    ),
)


def reference(kind: Kind) -> str:
    """The folder of the root in which the kind's undisturbed output stands."""
    return f"reference-{kind.name}"


def spec_of(kind: Kind, target: str) -> dict[str, Any]:
    """The kind's spec for a target, where it takes one."""
    return {**kind.spec, "target": f"data:{target}"} if kind.writes else dict(kind.spec)
