"""Opens a study in a file or a database that many processes share, and says in one line what is wrong with it."""

from __future__ import annotations

import contextlib
import json
import random
import re
import time
import uuid
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from strongreg.differences import describe_difference
from strongreg.extras import how_to_install
from strongreg.sweeps.errors import StudyError

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import BaseStorage, RDBStorage
    from sqlalchemy import URL, Engine

HEARTBEAT_SECONDS = 10
"""How often a process says that its trials are under way."""
GRACE_SECONDS = 60
"""After how long a silence others take them up."""
_LOCK_SECONDS = 60.0
_SECRETS = ("pass", "pwd", "secret", "token", "odbc_connect")
"""What the name of a part of a URL's query says if it holds a password."""
_SEPARATORS = set(":/@?&=; ")
_KIND = re.compile(r"[A-Za-z][A-Za-z0-9_+]*://")
_HOW_TO_WRITE = "write sqlite:///FILE or postgresql://USER@HOST/DATABASE"
_DRIVERS = {"psycopg": "psycopg[binary]", "psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}
"""By what pip calls them, with the database's own library where there is such a one."""
_CONFIG, _ID = "strongreg", "strongreg_id"
_ATTEMPTS = 20
_CONFIG_SECONDS = 10.0


@dataclass(frozen=True)
class OpenStudy:
    """A study that is there, and is the one that was asked for.

    Args:
        storage: reads and writes at once, without a cache.
        study: of optuna, in that storage.
        shown: the storage's URL without a password.
        identity: of the study, unlike that of any other.
        is_new: whether it was made just now, by this process.
        secrets: what no message may hold.
    """

    storage: BaseStorage
    study: Study
    shown: str
    identity: str
    is_new: bool
    secrets: tuple[str, ...] = field(default=(), repr=False)

    @contextlib.contextmanager
    def errors_told(self) -> Iterator[None]:
        """What goes wrong with the storage within the block is said in one line.

        Raises:
            StudyError: the storage cannot be read or written.
        """
        with _errors_told(self.shown, self.secrets):
            yield


def open_study(url: str | None, name: str, config: dict[str, Any]) -> OpenStudy:
    """Open a study of two objectives, accuracy and compression, and make it if there is none.

    Args:
        url: as SQLAlchemy writes it, such as sqlite:///sweep.db or postgresql://user@host/database; None for memory.
        name: of the study in the storage.
        config: what decides the outcome of its trials, plain data; that of a study that is there must be the same.

    Returns:
        The study.

    Raises:
        ImportError: optuna is missing.
        TypeError: the URL or the name is no text.
        StudyError: the storage cannot be used, or the study is of another configuration.
    """
    _check_name(name)
    storage, shown, secrets = _open_storage(url)
    with closed_on_error(storage), _errors_told(shown, secrets):
        plain = json.loads(json.dumps(config))
        study, is_new = _create_or_load(storage, name, plain)
        _check_config(study, plain, shown)
        return OpenStudy(storage, study, shown, study.user_attrs[_ID], is_new, secrets)


def show_url(url: str) -> str:
    """A storage's URL for people.

    Args:
        url: as for :func:`open_study`.

    Returns:
        It, without a password.

    Raises:
        ImportError: optuna is missing.
        TypeError: the URL is no text.
        StudyError: it is no URL.
    """
    return _show(_parse(url))


def identity_of(url: str, name: str) -> str | None:
    """The identity of a study that may be there; it is not made.

    Args:
        url: as for :func:`open_study`.
        name: of the study.

    Returns:
        Its :attr:`OpenStudy.identity`; None where there is no such study, or it is not of strongreg.

    Raises:
        ImportError: optuna is missing.
        TypeError: the URL or the name is no text.
        StudyError: the storage cannot be used.
    """
    _check_name(name)
    parsed = _parse(url)
    if parsed.get_backend_name() == "sqlite" and "uri" not in parsed.query and not Path(str(parsed.database)).exists():
        return None  # SQLite would make the file
    storage, shown, secrets = _open_storage(url)
    with _errors_told(shown, secrets):
        try:
            identity = storage.get_study_user_attrs(storage.get_study_id_from_name(name)).get(_ID)
        except KeyError:
            identity = None
        finally:
            close(storage)
    return identity if isinstance(identity, str) else None


def close(storage: BaseStorage) -> None:
    """Let go of the connections of a storage, which opens new ones if it is used again.

    Args:
        storage: of optuna.
    """
    from optuna.storages import RDBStorage

    if isinstance(storage, RDBStorage):
        storage.engine.dispose()


@contextlib.contextmanager
def closed_on_error(storage: BaseStorage) -> Iterator[None]:
    """Let go of the connections of a storage if the block raises.

    Args:
        storage: of optuna.
    """
    try:
        yield
    except BaseException:
        close(storage)
        raise


def file_url(file: Path) -> str:
    """The URL of a study in an SQLite file.

    Args:
        file: need not exist, its folder must.

    Returns:
        A URL for :func:`open_study`.

    Raises:
        ImportError: optuna, with which SQLAlchemy comes, is missing.
    """
    try:
        from sqlalchemy import URL
    except ImportError as error:
        raise _optuna_is_missing() from error
    return URL.create("sqlite", database=str(file)).render_as_string()


def _optuna_is_missing() -> ImportError:
    return ImportError(f"a search for a strength needs the package 'optuna': {how_to_install('sweep')}")


def _check_name(name: str) -> None:
    if not isinstance(name, str):
        raise TypeError(f"study name {name!r}: must be a text, such as 'strongreg'")
    if not name.strip():
        raise StudyError(f"study name {name!r} is empty: give it a name, such as 'mcp'")


# ---------------------------------------------------------------------- URL


def _parse(url: str) -> URL:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    _check_type(url)
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise StudyError(f"storage {_show_broken(url)!r} is no URL: {_HOW_TO_WRITE}") from None
    if "@" in (parsed.host or ""):  # the rest of the password
        raise StudyError(
            f"storage {_show_broken(url)!r}: a user or a password with @ in it is no URL; write %40 for it, or the "
            "password in ~/.pgpass"
        )
    if parsed.get_backend_name() == "sqlite" and (parsed.database or ":memory:") == ":memory:":
        raise StudyError(f"storage {_show(parsed)!r} is in memory and would be gone afterwards: write sqlite:///FILE")
    return parsed


def _check_type(url: object) -> None:
    if isinstance(url, Path):
        raise TypeError(f"storage={url!r}: must be a text; write {f'sqlite:///{url}'!r}")
    if not isinstance(url, str):  # not its value: what connects to a database may know a password
        raise TypeError(
            f"storage is of type {type(url).__name__}: must be the URL of a database as a text, such as "
            "'sqlite:///search.db', or None for memory"
        )


def _show_broken(url: str) -> str:
    """Of what cannot be told apart into its parts, only what is no password."""
    if not (_SEPARATORS & set(url)):  # a word, such as the name of a file
        return url
    kind = _KIND.match(url)
    return f"{kind[0]}***" if kind else "***"


def _show(url: URL) -> str:
    hidden = {name: "***" for name in url.query if _is_secret(name)}
    text = url.update_query_dict(hidden).render_as_string(hide_password=True)
    return text.replace("=%2A%2A%2A", "=***")


def _passwords(url: URL) -> tuple[str, ...]:
    found = [url.password]
    for name, value in url.query.items():
        if _is_secret(name):
            found += [value] if isinstance(value, str) else value
    return tuple(str(password) for password in found if password)


def _is_secret(name: str) -> bool:
    return any(word in name.lower() for word in _SECRETS)


# ---------------------------------------------------------------------- storage


def _open_storage(url: str | None) -> tuple[BaseStorage, str, tuple[str, ...]]:
    """The storage, its URL without a password, and the passwords."""
    try:
        import optuna
    except ImportError as error:
        raise _optuna_is_missing() from error
    if url is None:
        return optuna.storages.InMemoryStorage(), "in memory", ()
    parsed = _parse(url)
    shown, secrets = _show(parsed), _passwords(parsed)
    with _errors_told(shown, secrets):
        return _connect(parsed), shown, secrets


def _connect(url: URL) -> RDBStorage:
    """Connect, and make the tables if there are none; another process may be making them at the same moment."""
    from sqlalchemy.exc import SQLAlchemyError

    for attempt in range(_ATTEMPTS):
        try:
            return _new_storage(url)
        except (SQLAlchemyError, AssertionError) as error:
            if attempt == _ATTEMPTS - 1 or not _is_race(error):
                raise
            time.sleep(random.uniform(0.05, 0.3))
    raise AssertionError


def _is_race(error: Exception) -> bool:
    text = str(error).lower()
    return isinstance(error, AssertionError) or any(word in text for word in ("already exists", "duplicate", "unique"))


def _new_storage(url: URL) -> RDBStorage:
    from optuna.exceptions import ExperimentalWarning
    from optuna.storages import RDBStorage
    from sqlalchemy import NullPool

    is_sqlite = url.get_backend_name() == "sqlite"
    engine_kwargs: dict[str, Any] = {"pool_pre_ping": True}
    if is_sqlite:  # a connection for each transaction: none is left open, or shared with a forked process
        engine_kwargs = {"connect_args": {"timeout": _LOCK_SECONDS}, "poolclass": NullPool}
    # optuna fills in {SCHEMA_VERSION} in a URL: a brace in a path or a password is to stay what it is
    text = url.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*heartbeat_interval", ExperimentalWarning)
        storage = RDBStorage(text, engine_kwargs, heartbeat_interval=HEARTBEAT_SECONDS, grace_period=GRACE_SECONDS)
    if is_sqlite:
        _serialize(storage.engine)
    return storage


def _serialize(engine: Engine) -> None:
    """Let every transaction on an SQLite file wait for its turn from its first statement on.

    SQLite has no lock on a row: two processes that read a trial as waiting would both begin it. And of two that have
    read and then want to write, one is refused at once ("database is locked"), however long it would have waited.
    """
    from sqlalchemy import event

    @event.listens_for(engine, "connect")
    def leave_transactions_to_us(connection: Any, _: Any) -> None:
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")


@contextlib.contextmanager
def _errors_told(shown: str, secrets: tuple[str, ...]) -> Iterator[None]:
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import NoSuchModuleError, SQLAlchemyError

    try:
        yield
    except NoSuchModuleError as error:
        raise StudyError(f"storage {shown}: there is no such kind of database; {_HOW_TO_WRITE}") from error
    except ImportError as error:
        missing = error.__cause__.name if isinstance(error.__cause__, ImportError) else error.name
        wanted = _DRIVERS.get(str(missing), missing)
        raise StudyError(f"storage {shown} needs the package {missing!r}: run pip install '{wanted}'") from error
    except (SQLAlchemyError, StorageInternalError, RuntimeError) as error:
        if isinstance(error, StudyError):
            raise
        reason = _reason(error)
        for secret in secrets:
            reason = reason.replace(secret, "***")
        raise StudyError(f"storage {shown}: {reason}; {_remedy(reason)}") from None


def _reason(error: BaseException) -> str:
    """What the database itself says."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(getattr(error, "orig", None) or error).split()).rstrip(".;")


def _remedy(reason: str) -> str:
    if any(words in reason.lower() for words in ("is full", "no space left", "could not extend", "quota")):
        return "make room on the disk that it lies on; what is finished is kept, and the same command goes on"
    if "locked" in reason:
        return "another program holds it: let that end, or take PostgreSQL where many write at once"
    if any(word in reason for word in ("readonly", "read-only", "unable to open")):
        return "the file and its folder must exist and be writable, or choose another --storage"
    if "not a database" in reason:
        return "it is a file of another kind: choose another --storage"
    return "check the URL, and that the database is there and lets you write; the same command goes on"


# ---------------------------------------------------------------------- study


def _create_or_load(storage: BaseStorage, name: str, config: dict[str, Any]) -> tuple[Study, bool]:
    """The study of this name, with a configuration in it, and whether it was made just now, by us."""
    import optuna
    from optuna.exceptions import DuplicatedStudyError, ExperimentalWarning
    from optuna.study import StudyDirection

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        storage.create_new_study([StudyDirection.MAXIMIZE, StudyDirection.MAXIMIZE], name)
        is_new = True
    except DuplicatedStudyError:
        is_new = False
    finally:
        optuna.logging.set_verbosity(verbosity)
    study = optuna.load_study(study_name=name, storage=storage)
    deadline = time.monotonic() + (0.0 if is_new else _CONFIG_SECONDS)
    while _CONFIG not in study.user_attrs and not study.trials and time.monotonic() < deadline:
        time.sleep(0.1)
    if _CONFIG not in study.user_attrs and not study.trials:  # it is ours to write; or who made the study is dead
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*set_metric_names", ExperimentalWarning)
            study.set_metric_names(["accuracy", "compression"])
        study.set_user_attr(_ID, uuid.uuid4().hex)
        study.set_user_attr(_CONFIG, config)
    return study, is_new


def _check_config(study: Study, config: dict[str, Any], shown: str) -> None:
    before = study.user_attrs.get(_CONFIG)
    if before is None:
        raise StudyError(f"study {study.study_name!r} in {shown} was not made by strongreg: choose another study name")
    if before != config:
        raise StudyError(
            f"study {study.study_name!r} in {shown} is of another search{describe_difference(before, config)}: choose "
            "another study name, or another storage"
        )
