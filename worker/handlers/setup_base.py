"""The weights that a trainer starts from: imported, drawn, linked, used again from an earlier setup, or elsewhere."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ..adapters.fresh import BaseRows
from ..checkpoints.drawn_source import DrawnSource, DrawnTensor
from ..checkpoints.extents import Item
from ..checkpoints.hf_folder import CONFIG, side_files
from ..checkpoints.identity import FileIdentity, identities
from ..checkpoints.iterations import RELEASE, TRACKER, iteration_folder, iteration_name, tracker_text
from ..checkpoints.torch_dist import METADATA
from ..engine.digests import FileDigest, digest_of
from ..engine.plain_weights import CONFIGURED
from ..jobs.errors import BadInputError
from ..jobs.locations import Locations
from ..jobs.setup_spec import SetupSpec
from ..mapping.bindings import Model
from ..mapping.blocks import Address, Plan, Task
from ..mapping.initial_values import initial_values
from ..mapping.quantization import without_quantization
from ..mapping.run_config import RUN_CONFIG
from .config import model_of, read_record
from .conversion import Conversion
from .described import run_config_files
from .hf_source import STORED, HFSource, as_json, is_hf, open_hf, refuse_hf_config
from .import_checkpoint import into_megatron
from .linking import linked, listed_in
from .megatron_source import open_checkpoint
from .saved_weights import args_of, open_saved
from .setup_checks import BaseOrigin, Way

HF = "hf"
BASE = "base"
"""In the manifest: what the base was made from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SetupBase:
    """A Megatron checkpoint, written here or elsewhere."""

    way: Way
    conversion: Conversion
    """What is written, linked and said for it alone; without files where nothing has to be written."""
    root: Path
    """The folder with the tracker file."""
    iteration: int | None
    tracked: str
    """What the tracker file says."""
    hf_weights: Path | None
    fingerprint: str
    """Of source and layout: an earlier setup with the same one holds the same base."""
    origin: BaseOrigin

    @property
    def model(self) -> Model:
        return self.conversion.model

    @property
    def tasks(self) -> tuple[Task, ...]:
        """Of what is written."""
        return self.conversion.plan.tasks if self.conversion.files else ()

    @property
    def items(self) -> tuple[Item, ...]:
        """The same, with their bytes located."""
        return self.conversion.items if self.conversion.files else ()

    @property
    def is_here(self) -> bool:
        """Whether the directory itself holds the weights."""
        return self.way != "referenced"

    def rows(self, address: Address) -> BaseRows:
        """A Megatron tensor's rows, whether it is written or was there."""
        for item in self.conversion.items:
            if (item.name, item.index) == (address.name, address.index):
                return BaseRows(dtype=item.dtype, extents=item.extents)
        weights = self.conversion.weights
        tensor = weights.tensors[address.name]
        rows = tensor.shape[len(address.index)]
        return BaseRows(dtype=tensor.dtype, extents=weights.rows(address.name, address.index, 0, rows))


def open_setup_base(spec: SetupSpec, source: Path, target: Path, locations: Locations) -> SetupBase:
    """Read configs and indexes. BadInputError where the source cannot serve as the spec asks."""
    if spec.init == "random":
        return _again(_drawn(spec, source, target), spec, target)
    refuse_hf_config(spec.hf_config, source)
    if is_hf(source):
        if spec.base not in ("auto", "import"):
            raise _no_such_base(spec, "an HF checkpoint", "import")
        return _again(_imported(spec, source, target, open_hf(source, spec.dtype), "imported"), spec, target)
    if (field := _for_hf_alone(spec)) is not None:
        found = "a Megatron checkpoint, whose bytes are shared as they are"
        raise _no_such_base(spec, found, "link or reference", field)
    return _megatron(spec, source, target, locations)


def _for_hf_alone(spec: SetupSpec) -> str | None:
    """A field that asks for weights that are written."""
    if spec.base == "import":
        return "base import"
    if spec.dtype is not None:
        return f"dtype {spec.dtype}"
    return None if spec.layer_keys == "stacked" else f"layer_keys {spec.layer_keys}"


def _imported(spec: SetupSpec, source: Path, target: Path, opened: HFSource, way: Way) -> SetupBase:
    conversion = into_megatron(
        opened,
        source,
        target,
        beside=side_files(source),
        described_by=(source / CONFIG,),
        layer_keys=spec.layer_keys,
        part_bytes=spec.part_bytes,
    )
    seed = spec.seed if way == "drawn" else None
    beside = set(conversion.carried.values()) - {source / CONFIG}
    weights = [one for one in conversion.sources if one.path not in beside]
    return SetupBase(
        way=way,
        conversion=conversion,
        root=target,
        iteration=None,
        tracked=tracker_text(None),
        hf_weights=source if way == "imported" else None,
        fingerprint=_fingerprint(weights, way, seed, conversion.digest),
        origin=BaseOrigin(way=way, model=conversion.model, plan=conversion.plan, folder=source),
    )


def _fingerprint(sources: Iterable[FileIdentity], *more: object) -> str:
    told = [(one.path.name, one.bytes, one.mtime_ns, one.ctime_ns, one.inode) for one in sources]
    return digest_of(repr((told, *more)).encode())


def _drawn(spec: SetupSpec, source: Path, target: Path) -> SetupBase:
    """A fresh model of this config."""
    config = read_record(source)
    given = STORED[spec.dtype] if spec.dtype else None
    named = {name: stored for stored, name in CONFIGURED.items()}
    said = str(config.get("dtype") or config.get("torch_dtype") or "bfloat16")
    dtype = given or named.get(said, "BF16")
    plain = without_quantization(config, CONFIGURED[dtype])
    model = model_of(plain)
    drawn = {
        name: DrawnTensor(
            shape=values.shape,
            dtype="F32" if values.in_fp32 else dtype,
            law=values.law,
            low=values.low,
            high=values.high,
        )
        for name, values in initial_values(model).items()
    }
    same = dict(plain.values) == dict(config.values)
    opened = HFSource(
        model=model, weights=DrawnSource.of(spec.seed, drawn), config_json=None if same else as_json(plain)
    )
    return _imported(spec, source, target, opened, "drawn")


def _megatron(spec: SetupSpec, source: Path, target: Path, locations: Locations) -> SetupBase:
    hf_config = locations.resolve_source(spec.hf_config) if spec.hf_config else None
    opened = open_checkpoint(source, hf_config, allow_pickle=locations.allow_pickle)
    folder = iteration_folder(source)
    if not (folder / METADATA).exists():
        raise _no_such_base(spec, "Megatron's older torch format", "none: export it to HF first, and set up from that")
    links = spec.base == "link" or (spec.base == "auto" and _can_link(folder, target))
    described = opened.described
    small = {f"{HF}/{CONFIG}": described.config_json} if described.config_json is not None else {}
    found = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    carried = {f"{HF}/{name}": path for name, path in described.carried.items() if f"{HF}/{name}" not in small}
    weights = identities(found.values())
    base = SetupBase(
        way="referenced",
        conversion=Conversion(
            kind="setup",
            source=source,
            target=target,
            model=described.model,
            weights=opened.weights,
            plan=Plan(tasks=(), dropped=opened.plan.dropped, filled=opened.plan.filled),
            items=(),
            files=(),
            small_files=small,
            carried=carried,
            sources=identities((*found.values(), *opened.files, *carried.values())),
            part_bytes=spec.part_bytes,
        ),
        root=folder.parent,
        iteration=_iteration_of(folder),
        tracked=_tracked(folder.parent),
        hf_weights=None,
        fingerprint=_fingerprint(weights),
        origin=BaseOrigin(way="referenced", model=described.model, plan=Plan(tasks=()), folder=folder),
    )
    if links:
        return _linked(base, folder, found, target)
    if spec.profile == "megatron-bridge" and not run_config_files(folder):
        _refuse_unknown_to_bridge(spec, folder, locations)
    if not base.tracked:
        raise _no_such_base(spec, f"an iteration folder without {TRACKER} beside it, which trainers ask for", "link")
    return base


def _refuse_unknown_to_bridge(spec: SetupSpec, folder: Path, locations: Locations) -> None:
    """Bridge asks what it loads for the parallelism it was saved at, there or in the `args` of a run."""
    if not args_of(open_saved(folder, allow_pickle=locations.allow_pickle)):
        raise _no_such_base(spec, f"weights with neither {RUN_CONFIG} nor args, which Megatron-Bridge asks for", "link")


def _linked(base: SetupBase, folder: Path, found: Mapping[str, Path], target: Path) -> SetupBase:
    """The same as `release`, from which trainers start afresh whatever iteration it was."""
    listed = listed_in(folder.parent)
    known: Mapping[str, FileDigest] = {} if listed is None else listed.files
    files = {
        f"{RELEASE}/{name}": linked(path, known.get(f"{folder.name}/{name}"))
        for name, path in found.items()
        if name != RUN_CONFIG  # this run has its own
    }
    whole = listed is not None and all(file.digest is not None for file in files.values())
    return replace(
        base,
        way="linked",
        origin=replace(base.origin, way="linked"),
        conversion=replace(
            base.conversion,
            linked=files,
            linked_tensors=dict(listed.tensors) if whole and listed is not None else {},
            small_files={**base.conversion.small_files, TRACKER: tracker_text(None).encode()},
        ),
        root=target,
        iteration=None,
        tracked=tracker_text(None),
    )


def _again(base: SetupBase, spec: SetupSpec, target: Path) -> SetupBase:
    """The base with the files of the setup that stands at the target, where that has the same ones."""
    if spec.on_exists != "reuse":
        return base
    listed = listed_in(target)
    if listed is None or listed.document.get(BASE) != {"way": base.way, "fingerprint": base.fingerprint}:
        return base
    conversion = base.conversion
    sizes = {file.path: file.size for file in conversion.files}
    if any(not (target / name).is_file() or (target / name).stat().st_size != size for name, size in sizes.items()):
        return base
    spans = [span for file in conversion.files for span in file.spans]
    labels = {item.label for item in conversion.items} | {str(span.label) for span in spans}
    again = replace(
        conversion,
        files=(),
        linked={name: linked(target / name, listed.files.get(name)) for name in sizes},
        linked_tensors={name: digest for name, digest in listed.tensors.items() if name in labels},
    )
    return replace(base, conversion=again)


def _can_link(folder: Path, target: Path) -> bool:
    place = next(parent for parent in target.parents if parent.exists())
    return folder.stat().st_dev == place.stat().st_dev


def _tracked(root: Path) -> str:
    """Empty where there is no such file."""
    tracker = root / TRACKER
    text = tracker.read_text().strip() if tracker.exists() else ""
    return tracker_text(int(text)) if text.isdecimal() else text


def _iteration_of(folder: Path) -> int | None:
    number = folder.name.removeprefix("iter_")
    return int(number) if number.isdecimal() and iteration_name(int(number)) == folder.name else None


def _no_such_base(spec: SetupSpec, found: str, expected: str, field: str | None = None) -> BadInputError:
    return BadInputError(
        "bad_request",
        f"spec field {field or f'base {spec.base}'}",
        found=f"{found} as source",
        expected=expected,
        next_step="Change or leave out the field, or name another source.",
    )
