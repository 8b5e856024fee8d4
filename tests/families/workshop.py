"""Random models and what our jobs make of them, each made once a session; jobs run in this process."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from worker.handlers import config
from worker.handlers.context import JobContext, Prepared
from worker.handlers.conversion import refuse_full_disk
from worker.handlers.model_configs import WarmModelConfigs
from worker.handlers.run import run
from worker.jobs.locations import LocalPaths
from worker.jobs.setup_spec import SetupSpec
from worker.jobs.spec import ExportSpec, ImportSpec
from worker.mapping.family import Family

from .case import Case, write


@dataclass(slots=True)
class Workshop:
    """Sources, imports and exports under `folder`; configs are built by the warm process at `socket`."""

    folder: Path
    socket: Path
    _made: set[Path] = field(default_factory=set[Path], init=False)

    def source(self, case: Case) -> Path:
        """The HF checkpoint."""
        return self._once(self.folder / case.name / "hf", lambda path: write(case, path))

    def imported(self, case: Case) -> Path:
        """Our import of it."""
        source = self.source(case)
        return self._once(
            self.folder / case.name / "mcore",
            lambda path: self.run(ImportSpec(source=str(source), target=str(path))),
        )

    def import_as(self, family: Family, case: Case, target: Path) -> Path:
        """An import of the case's checkpoint under another page than its own."""
        with mock.patch.object(config, "family_of", return_value=family):
            self.run(ImportSpec(source=str(self.source(case)), target=str(target)))
        return target

    def run(self, spec: ImportSpec | ExportSpec | SetupSpec, *, allow_pickle: bool = False) -> None:
        """Do a job and publish its output."""
        outcome = run(spec, self._context(LocalPaths(allow_pickle=allow_pickle)))
        assert isinstance(outcome, Prepared)
        outcome.staged.publish()

    def _once(self, path: Path, make: Callable[[Path], None]) -> Path:
        if path not in self._made:
            path.parent.mkdir(exist_ok=True)
            make(path)
            self._made.add(path)
        return path

    def _context(self, locations: LocalPaths) -> JobContext:
        return JobContext(
            locations=locations,
            job_id="job",
            staging_suffix="test",
            report=lambda _: None,
            model_configs=WarmModelConfigs(self.socket),
            reserve=refuse_full_disk,
        )
