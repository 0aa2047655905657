"""What can be wrong with a storage is one line that names it, without its password."""

from __future__ import annotations

import contextlib
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
import sqlalchemy

from strongreg.sweeps import StudyError, storage
from strongreg.sweeps.storage import open_study

CONFIG = {"search": {"low": 0.1}}


def _error(url: str) -> str:
    with pytest.raises(StudyError) as caught:
        open_study(url, "s", CONFIG)
    text = str(caught.value)
    assert "\n" not in text
    assert "secret" not in text
    return text


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nothing", "storage 'nothing' is no URL: write sqlite:///FILE or postgresql://"),
        ("", "storage '' is no URL"),
        ("postgresql://me:secret@host:port/x", "storage 'postgresql://***' is no URL"),
        ("nosuch://me:secret@host/x", "storage nosuch://me:***@host/x: there is no such kind of database"),
        ("sqlite+none://", "is in memory"),
        ("sqlite://", "storage 'sqlite://' is in memory and would be gone afterwards"),
        ("sqlite:///:memory:", "is in memory"),
        ("sqlite:///none/here.db", "unable to open database file; the file and its folder must exist"),
        ("sqlite:///folder", "unable to open database file; the file and its folder must exist"),
        ("sqlite:///text.db", "file is not a database; it is a file of another kind: choose another --storage"),
    ],
)
def test_a_url_that_leads_nowhere(tmp_path, monkeypatch, url, message):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("text.db").write_text("mine, and longer than the header of a database" * 100)
    assert message in _error(url)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:se/cret@h:5x/x", "postgresql://***"),
        ("postgresql//u:se/cret@h/x", "***"),
        ("postgresql://u:cret:se@h:p/x", "postgresql://***"),
        ("postgresql://u:se@cret@h:port/x", "postgresql://***"),
        ("postgresql://u:se@cret@h/x", "postgresql://***"),
        ("postgresql+psycopg://u@h:p/x?password=cret", "postgresql+psycopg://***"),
        ("host=h password=cret", "***"),
        ("u:cret@h", "***"),
        ("cret@h", "***"),
    ],
)
def test_of_a_url_that_cannot_be_read_nothing_is_shown_that_may_be_a_password(url, shown):
    text = _error(url)
    assert text.startswith(f"storage {shown!r}")
    assert "cret" not in text.replace("secret", "")


def test_a_password_is_hidden_wherever_it_stands():
    parsed = storage._parse("postgresql://me:secret@host/x?sslmode=require&password=secret2")
    assert storage._show(parsed) == "postgresql://me:***@host/x?password=***&sslmode=require"
    assert storage._passwords(parsed) == ("secret", "secret2")
    twice = storage._parse("postgresql://host/x?SSLPassword=secret&SSLPassword=secret2&PWD=s")
    assert storage._show(twice) == "postgresql://host/x?PWD=***&SSLPassword=***"
    assert sorted(storage._passwords(twice)) == ["s", "secret", "secret2"]
    assert "secret" not in _error("sqlite://?password=secret")


def test_a_full_disk_has_a_remedy_of_its_own(tmp_path):
    url = f"sqlite:///{tmp_path / 'a.db'}"

    def connect(connection: sqlite3.Connection, _: object) -> None:
        connection.execute(f"PRAGMA max_page_count = {connection.execute('PRAGMA page_count').fetchone()[0]}")

    opened = open_study(url, "s", CONFIG)
    sqlalchemy.event.listen(opened.storage.engine, "connect", connect)
    with (
        pytest.raises(StudyError, match="database or disk is full; make room on the disk") as caught,
        opened.errors_told(),
    ):
        opened.study.set_user_attr("long", ["x" * 1000] * 1000)
    assert "check the URL" not in str(caught.value)


def test_asking_for_a_study_makes_none(tmp_path):
    file = tmp_path / "a.db"
    assert storage.identity_of(f"sqlite:///{file}", "s") is None
    assert not file.exists()
    opened = open_study(f"sqlite:///{file}", "s", CONFIG)
    assert storage.identity_of(f"sqlite:///{file}", "s") == opened.identity
    assert storage.identity_of(f"sqlite:///file:{file}?uri=true", "s") == opened.identity
    assert storage.identity_of(f"sqlite:///{file}", "other") is None
    with _storage(f"sqlite:///{file}") as foreign:
        assert optuna.get_all_study_names(foreign) == ["s"]


@pytest.mark.parametrize(
    ("kind", "module", "wanted"),
    [
        ("postgresql+psycopg", "psycopg", "psycopg[binary]"),
        ("postgresql+psycopg2", "psycopg2", "psycopg2-binary"),
        ("mysql", "MySQLdb", "mysqlclient"),
        ("mysql+pymysql", "pymysql", "pymysql"),
    ],
)
def test_a_driver_that_is_missing_is_named_as_pip_calls_it(monkeypatch, kind, module, wanted):
    monkeypatch.setitem(sys.modules, module, None)
    text = _error(f"{kind}://me:secret@host/x")
    assert text == f"storage {kind}://me:***@host/x needs the package {module!r}: run pip install '{wanted}'"


def test_a_file_that_cannot_be_written(tmp_path):
    open_study(f"sqlite:///{tmp_path / 'a.db'}", "other", CONFIG)
    text = _error(f"sqlite:///file:{tmp_path / 'a.db'}?mode=ro&uri=true")
    assert "attempt to write a readonly database; the file and its folder must exist and be writable" in text


def test_a_file_that_another_program_holds(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "_LOCK_SECONDS", 0.05)
    open_study(f"sqlite:///{tmp_path / 'a.db'}", "other", CONFIG)
    holder = sqlite3.connect(tmp_path / "a.db", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    assert "database is locked; another program holds it: let that end" in _error(f"sqlite:///{tmp_path / 'a.db'}")
    holder.close()


@contextlib.contextmanager
def _storage(url: str) -> Iterator[optuna.storages.RDBStorage]:
    """As another program opens it; optuna leaves connections open."""
    made = optuna.storages.RDBStorage(url)
    try:
        yield made
    finally:
        made.engine.dispose()


@pytest.fixture
def disposed() -> Iterator[list[sqlalchemy.Engine]]:
    """The engines whose connections were let go of."""
    engines: list[sqlalchemy.Engine] = []

    def note(engine: sqlalchemy.Engine) -> None:
        engines.append(engine)

    sqlalchemy.event.listen(sqlalchemy.Engine, "engine_disposed", note)
    yield engines
    sqlalchemy.event.remove(sqlalchemy.Engine, "engine_disposed", note)


def test_a_study_that_cannot_be_used_leaves_no_connection_open(tmp_path, disposed):
    url = f"sqlite:///{tmp_path / 'a.db'}"
    opened = open_study(url, "s", CONFIG)
    assert not disposed
    with pytest.raises(StudyError, match="is of another search"):
        open_study(url, "s", {"search": {"low": 0.2}})
    assert len(disposed) == 1
    with pytest.raises(KeyboardInterrupt), storage.closed_on_error(opened.storage):
        raise KeyboardInterrupt
    assert disposed[1:] == [opened.storage.engine]


def test_a_study_that_is_not_ours_is_left_alone(tmp_path):
    url = f"sqlite:///{tmp_path / 'a.db'}"
    verbosity = optuna.logging.get_verbosity()
    with _storage(url) as foreign:
        optuna.create_study(study_name="s", storage=foreign).enqueue_trial({"x": 1})
    assert "study 's' in sqlite:///" in (text := _error(url))
    assert text.endswith("was not made by strongreg: choose another study name")
    assert optuna.logging.get_verbosity() == verbosity


def test_a_study_whose_maker_died_before_it_wrote_the_configuration_is_completed(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "_CONFIG_SECONDS", 0.0)
    url = f"sqlite:///{tmp_path / 'a.db'}"
    with _storage(url) as foreign:
        optuna.create_study(study_name="s", storage=foreign, directions=["maximize", "maximize"])
    opened = open_study(url, "s", CONFIG)
    assert not opened.is_new
    assert open_study(url, "s", CONFIG).identity == opened.identity
