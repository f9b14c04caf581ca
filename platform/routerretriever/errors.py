"""Everything that this project raises for a reason that a person can act on.

Each error is of one of five kinds. The kind, and nothing else, decides the HTTP status and whether the
command line prints one line. Any other exception is our own mistake and is shown with its traceback.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Numbers of the operating system's errors that say that a disk, a quota or a file is full."""
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+@(?:[^/?#\s\"',]*@)?")
_NAMED = 20
"""Names that a message lists; there may be thousands of collections."""
_SECRET_OPTIONS = re.compile(
    r"(?i)([?&](?:[\w-]*(?:password|passwd|token|secret|signature|key)|sig)=)[^&#\s'\"]+"
)


def without_secrets(text: str) -> str:
    """A text whose URIs have lost their user names, passwords and tokens."""
    return _SECRET_OPTIONS.sub(r"\1***", _CREDENTIALS.sub("***@", text))


class RouterRetrieverError(Exception):
    """Base of all errors of this project; the message says what was found and what to do."""

    field: str | None = None
    """The setting or request field that is at fault, if it is one."""

    def __str__(self) -> str:
        return without_secrets(super().__str__())


class BadInput(RouterRetrieverError):
    """Something that was given is wrong: a setting, a file, a request."""


class NotFound(RouterRetrieverError):
    """Something that was named is not there."""


class Unavailable(RouterRetrieverError):
    """Something that is needed cannot be reached or is too busy now; trying again may help."""


class Damaged(RouterRetrieverError):
    """Something that was written is no longer what it was."""


class Refused(RouterRetrieverError):
    """What was asked for is understood and not allowed."""


class Forbidden(Refused):
    """Who asks may not do this."""


class WrongField(BadInput):
    """One field of a request is wrong."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


class RecipeError(BadInput):
    """A recipe or a setting is wrong; the message names the field and what was found."""


class DatasetError(BadInput):
    """A collection is wrong; the message names file, line, what was found and what to do."""


class EncoderError(BadInput):
    """A base encoder or an adapter cannot be loaded or does not fit."""


class WorkerFailed(BadInput):
    """A worker met something that a person has to mend; the shards that were finished are kept."""


class WriterError(BadInput):
    """A language model cannot answer: no model, no endpoint, no budget; the message says what to do."""


class TeacherError(BadInput):
    """A teacher cannot score documents: no model, no endpoint, no scores; the message says what to do."""


class ArtifactMissing(NotFound):
    """An artifact was asked for that no finished step has left."""


class UnknownName(NotFound):
    """A request names something that is not there."""

    def __init__(self, field: str, found: str | None, known: Sequence[str]) -> None:
        what = "none was named" if found is None else f"found {found!r}"
        more = f" and {len(known) - _NAMED} more" if len(known) > _NAMED else ""
        super().__init__(f"{field}: {what}; there are {', '.join(known[:_NAMED]) or 'none'}{more}")
        self.field = field


class StorageError(Unavailable):
    """Storage cannot be reached or written, or does not hold what it should."""


class RegistryError(Unavailable):
    """MLflow cannot be reached, or refused what was asked."""


class TrainingFailed(Unavailable):
    """Some domains could not be trained; the message names each with its reason. The others are kept."""


class Overloaded(Unavailable):
    """Too much is waiting; the caller should try again a little later."""


class RateExceeded(RouterRetrieverError):
    """A client has asked for more than it may in a minute."""

    def __init__(self, message: str, seconds: float) -> None:
        super().__init__(message)
        self.seconds = seconds
        """Until the same would be let in."""


class ArtifactDamaged(Damaged, StorageError):
    """Files of a finished artifact are not what was written."""

    def __init__(self, location: str, names: list[str]) -> None:
        super().__init__(location, names)
        self.location = location
        self.names = names

    def __str__(self) -> str:
        names = ", ".join(self.names)
        return f"{self.location}: missing or altered since it was written (hash mismatch): {names}"


class BundleError(Damaged):
    """A bundle is damaged, or its parts do not fit together."""


@contextmanager
def writing(to: Path) -> Iterator[None]:
    """Tell in one line why a place that a person has named cannot be written.

    Raises:
        BadInput: a folder is missing, or a file, or the disk is full or may not be written.
    """
    try:
        yield
    except OSError as error:
        raise BadInput(f"{error.filename or to}: {error.strerror or error}; name another place") from None


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its kind if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def failure_reason(error: Exception) -> str:
    """The innermost message of a chain of Ray errors, in one line."""
    cause: BaseException = error
    while True:
        inner = getattr(cause, "cause", None) or cause.__cause__
        failures = getattr(cause, "worker_failures", None)
        if failures:
            inner = next(iter(failures.values()))
        if not isinstance(inner, BaseException) or inner is cause:
            break
        cause = inner
    lines = [line for line in str(cause).strip().splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[-1].strip() if lines else ''}"
