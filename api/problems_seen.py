"""Problem documents as a client sees them: back to the error that they tell of. Light: no web framework."""

from collections.abc import Mapping

from worker.jobs.errors import ErrorInfo


def info_of(problem: Mapping[str, object]) -> ErrorInfo:
    """The error in a document; ValueError (pydantic's) where it is no document of ours."""
    return ErrorInfo.model_validate({name: problem.get(name) for name in ErrorInfo.model_fields})
