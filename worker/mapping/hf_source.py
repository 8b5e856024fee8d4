"""Where a config came from: the hub's id and revision, or a path; what the written config records."""

import re

HF_SOURCE, HF_REVISION = "hf_source", "hf_revision"

_HUB = re.compile(r"hub:(?P<id>[^@]+)(@(?P<revision>.+))?")
# huggingface_hub's cache: models--org--name/snapshots/<commit>
_SNAPSHOT = re.compile(r".*models--(?P<id>[^/]+)/snapshots/(?P<revision>[0-9a-f]{40})(/.*)?")


def recorded_source(text: str) -> dict[str, object]:
    """Id and revision of `hub:org/name@revision` or of a folder in the hub's cache; another source as it is."""
    if match := _HUB.fullmatch(text):
        return {HF_SOURCE: match["id"], HF_REVISION: match["revision"]}
    if match := _SNAPSHOT.fullmatch(text):
        return {HF_SOURCE: match["id"].replace("--", "/", 1), HF_REVISION: match["revision"]}
    return {HF_SOURCE: text, HF_REVISION: None}


def hub_source(model_id: str, revision: str | None) -> str:
    """The one text that names both."""
    return f"hub:{model_id}@{revision}" if revision else f"hub:{model_id}"
