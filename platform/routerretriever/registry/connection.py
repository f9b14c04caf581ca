"""Reaching MLflow without leaving traces: no global tracking URI, nothing created or migrated by reading."""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import unquote, urlparse, urlsplit

import sqlalchemy
from alembic.runtime.migration import MigrationContext
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.store.db import utils as database

from routerretriever.errors import BadInput, NotFound, Refused, RegistryError, first_line, without_secrets
from routerretriever.runtime.cluster import why_silent
from routerretriever.runtime.machine import goes_through_proxy
from routerretriever.runtime.progress import log

ARTIFACTS = "mlflow-artifacts"
"""Folder of a local storage that holds MLflow's files."""
DATABASE = "mlflow.db"
"""File of a local storage that is MLflow's database."""
_LOCATIONS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
"""Tables and columns in which MLflow keeps where files lie."""
_SQLITE = "sqlite:///"
_QUIET = {"MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false", "MLFLOW_RECORD_ENV_VARS_IN_MODEL_LOGGING": "false"}
_QUICK = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
"""MLflow's own defaults try a server that is away for many minutes."""
_ANSWER_SECONDS = 10.0
_NOTHING_LOST = "all that was made lies in storage; the same command registers what is missing"


def default_tracking_uri(storage: str) -> str:
    """The SQLite database in a local storage folder."""
    return f"{_SQLITE}{storage}/{DATABASE}"


def is_database(uri: str) -> bool:
    """Whether MLflow opens a database itself, and would create or migrate it, instead of asking a server."""
    return urlparse(uri).scheme.split("+")[0] in ("sqlite", "postgresql", "mysql", "mssql")


def open_to_read(uri: str) -> MlflowClient | None:
    """A client for a store as it is; None if there is no database yet.

    Raises:
        Refused: the database was made by another version of MLflow; reading would migrate it.
        RegistryError: it cannot be reached.
    """
    if is_database(uri):
        if uri.startswith(_SQLITE) and not Path(uri.removeprefix(_SQLITE)).exists():
            return None
        found = _revision(uri)
        if found is None:
            return None
        if found != database._get_latest_schema_revision():
            raise Refused(
                f"registry.tracking_uri: {without_secrets(uri)}: this database was made by another version "
                f"of MLflow (revision {found}); make a copy of it, then run `routerretriever migrate` with "
                "the recipe"
            )
    else:
        _require_answer(uri)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def open_to_write(uri: str) -> MlflowClient:
    """A client for a store, which is created if there is none; the errors are those of ``open_to_read``."""
    open_to_read(uri)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def migrate(uri: str) -> bool:
    """Bring a database to the schema of the installed MLflow; returns whether there was anything to do.

    Raises:
        NotFound: there is no database.
    """
    found = _revision(uri) if is_database(uri) else None
    if found is None:
        raise NotFound(f"registry.tracking_uri: {without_secrets(uri)}: no database to migrate")
    if found == database._get_latest_schema_revision():
        return False
    engine = sqlalchemy.create_engine(uri)
    try:
        database._upgrade_db(engine)
    finally:
        engine.dispose()
    return True


def require_folder(uri: str) -> None:
    """Refuse a database file in a folder that is not there; the storage's own is made with it.

    Raises:
        RegistryError: there is no such folder.
    """
    folder = Path(uri.removeprefix(_SQLITE)).parent
    if uri.startswith(_SQLITE) and not folder.is_dir():
        raise RegistryError(
            f"registry.tracking_uri: {without_secrets(uri)}: no folder {folder}; make it first"
        )


def _require_answer(uri: str) -> None:
    """Try to reach a server before MLflow does, which tries again and again.

    Raises:
        RegistryError: nobody accepts connections there.
    """
    place = urlsplit(uri)
    if not _is_server(uri) or place.hostname is None or goes_through_proxy(uri):
        return
    port = place.port or (443 if place.scheme == "https" else 80)
    if reason := why_silent(place.hostname, port, _ANSWER_SECONDS):
        raise RegistryError(
            f"registry.tracking_uri: {without_secrets(uri)}: no server answers there ({reason}); start it or "
            "mend the address"
        )


def _is_server(uri: str) -> bool:
    return urlsplit(uri).scheme in ("http", "https")


def _revision(uri: str) -> str | None:
    """The schema's revision; None for an empty database."""
    try:
        engine = sqlalchemy.create_engine(uri)
        try:
            with engine.connect() as connection:
                return MigrationContext.configure(connection).get_current_revision()
        finally:
            engine.dispose()
    except (sqlalchemy.exc.SQLAlchemyError, ImportError) as error:
        reason = without_secrets(f"{uri}: {first_line(error)}")
        raise RegistryError(f"registry.tracking_uri: {reason}") from None


@contextmanager
def reached(uri: str, patient: bool = False) -> Iterator[None]:
    """Quiet MLflow for a block, and turn its errors into one line that says what was tried.

    Args:
        uri: the tracking URI, for the message.
        patient: for the end of a run: let MLflow try for minutes, as its own defaults do, and say that
            nothing is lost. Otherwise a server that is away is given up within half a minute.

    Raises:
        RegistryError: MLflow has raised an error.
    """
    settings = {**_QUIET, **({} if patient else _QUICK)}
    added = {name: value for name, value in settings.items() if name not in os.environ}
    loggers = {name: logging.getLogger(name) for name in ("mlflow", "alembic")}
    levels = {name: logger.level for name, logger in loggers.items()}
    os.environ.update(added)
    for logger in loggers.values():
        # Every registration would warn that models of this kind are pickled.
        logger.setLevel(logging.ERROR)
    try:
        yield
    except MlflowException as error:
        reason = without_secrets(f"registry.tracking_uri: {uri}: {first_line(error)}")
        raise RegistryError(f"{reason}; {_NOTHING_LOST}" if patient else reason) from None
    except ImportError as error:  # MLflow opens a bucket with its cloud's own package
        reason = f"registry.tracking_uri: {without_secrets(uri)}: {error}; install it on this machine: "
        extras = "pip install 'routerretriever[s3]' for artifacts on S3, [gcs] for Google Cloud"
        raise RegistryError(f"{reason}{extras}{f'; {_NOTHING_LOST}' if patient else ''}") from None
    except RegistryError as error:
        if not patient:
            raise
        raise RegistryError(f"{error}; {_NOTHING_LOST}") from None
    finally:
        for name in added:
            os.environ.pop(name, None)
        for name, logger in loggers.items():
            logger.setLevel(levels[name])


def present_location(location: str, tracking_uri: str) -> str:
    """Where a model's files lie now.

    A storage folder with its own database may have been moved, copied or restored elsewhere; the database
    then still names the old place, where another storage may go on.

    Raises:
        BadInput: the files are in neither place.
    """
    path = _local_path(location)
    if path is None:
        return location
    if tracking_uri.startswith(_SQLITE) and ARTIFACTS in path.parts:
        beside = Path(tracking_uri.removeprefix(_SQLITE)).parent / _below_storage(path)
        if beside.exists():
            return beside.absolute().as_uri()
    if os.path.exists(path):  # unlike the method of Path, also where nobody else may look
        return location
    advice = "restore it from a back-up"
    if _is_server(tracking_uri):
        advice = "it is one of the machine that registered: start the server with --artifacts-destination"
    raise BadInput(f"{path}: the registry names this folder, which is not there; {advice}")


def warn_of_local_artifacts(location: str, tracking_uri: str) -> None:
    """Warn if a server has artifacts written to whichever machine registers; others do not find them."""
    path = _local_path(location)
    if path is not None and _is_server(tracking_uri):
        log.warning(
            "registry.tracking_uri: %s: this server has artifacts written to %s on the machine that "
            "registers, where no other finds them; start it with --artifacts-destination, and register under "
            "another registry.name, as this one keeps its place",
            without_secrets(tracking_uri), path,
        )  # fmt: skip


def relocate(file: Path, storage: Path) -> None:
    """Have a database that was copied name a storage's files where they are now.

    Args:
        file: a SQLite database that nobody uses.
        storage: the folder whose files it is to name.
    """
    with closing(sqlite3.connect(file)) as connection, connection:
        for table, column in _LOCATIONS:
            found = connection.execute("SELECT 1 FROM pragma_table_info(?) WHERE name = ?", (table, column))
            if found.fetchone() is None:
                continue  # an older MLflow's
            for (location,) in connection.execute(f"SELECT DISTINCT {column} FROM {table}").fetchall():
                path = _local_path(location or "models:/")
                if path is not None and ARTIFACTS in path.parts:
                    now = (storage / _below_storage(path)).as_uri()
                    connection.execute(f"UPDATE {table} SET {column} = ? WHERE {column} = ?", (now, location))


def _local_path(location: str) -> Path | None:
    """The path that a location in MLflow's database is; None if it is no file's."""
    parsed = urlparse(location)
    return Path(unquote(parsed.path)) if parsed.scheme in ("", "file") else None


def _below_storage(path: Path) -> Path:
    """The part of a path of MLflow's files that is the same wherever the storage lies."""
    return Path(*path.parts[path.parts.index(ARTIFACTS) :])
