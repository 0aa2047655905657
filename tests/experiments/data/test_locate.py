"""Where files are looked for, which are missing, and the download, without any network."""

from __future__ import annotations

import fnmatch
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from strongreg.experiments.data.catalog import PUBLISHED
from strongreg.experiments.data.locate import find_files, locate
from strongreg.experiments.errors import UserError

CIFAR10, SVHN = PUBLISHED["cifar10"], PUBLISHED["svhn"]


def _touch(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def _complete(folder: Path) -> Path:
    return _touch(folder, *(f"{split}-00000-of-00001.parquet" for split in ("test", "train")))


@pytest.fixture
def hub(monkeypatch) -> Mock:
    """In the place of huggingface_hub; without network unless a test says otherwise."""
    download = Mock(side_effect=ConnectionError("no route to host\nsecond line"))
    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=download))
    return download


def test_the_files_of_a_split_come_in_order(tmp_path):
    names = [f"train-{i:05}-of-00011.parquet" for i in range(11)]
    _touch(tmp_path, *reversed(names), "test-00000-of-00001.parquet", "README.md", "extra-00000-of-00002.parquet")
    files = find_files(tmp_path)
    assert [file.name for file in files.train] == names
    assert [file.name for file in files.test] == ["test-00000-of-00001.parquet"]


@pytest.mark.parametrize("folder", ["", "cifar10", "plain_text", "cifar10/plain_text"])
@pytest.mark.parametrize("by_variable", [False, True])
def test_each_layout_is_found_in_the_folder_given_or_in_the_variable(tmp_path, monkeypatch, hub, folder, by_variable):
    _complete(tmp_path / folder)
    if by_variable:
        monkeypatch.setenv("STRONGREG_DATA", str(tmp_path))
    files = locate("cifar10", CIFAR10, None if by_variable else tmp_path)
    assert files.folder == tmp_path / folder
    hub.assert_not_called()


def test_the_folder_given_goes_before_the_variable(tmp_path, monkeypatch):
    _complete(tmp_path / "a" / "cifar10")
    _complete(tmp_path / "b" / "cifar10")
    monkeypatch.setenv("STRONGREG_DATA", str(tmp_path / "b"))
    assert locate("cifar10", CIFAR10, tmp_path / "a").folder == tmp_path / "a" / "cifar10"


def test_a_home_in_the_path_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    _complete(tmp_path / "data" / "cifar10")
    assert locate("cifar10", CIFAR10, Path("~/data")).folder == tmp_path / "data" / "cifar10"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train-00000-of-00001.parquet"], r"holds no test-\*-of-\*.parquet"),
        (["test-00000-of-00001.parquet"], r"holds no train-\*-of-\*.parquet"),
        (["train-00001-of-00002.parquet"], "train-00000-of-00002.parquet is missing"),
        (["train-00000-of-00002.parquet"], "train-00001-of-00002.parquet is missing in .*: put all 2 train files"),
        (["train-00002-of-00004.parquet"], "train-00000-of-00004.parquet and 2 more is missing"),
        (["train-00000-of-00001.parquet", "train-00000-of-00002.parquet"], "mixes train files of 00001 and 00002"),
    ],
)
def test_what_is_missing_is_named_and_nothing_is_downloaded(tmp_path, monkeypatch, hub, names, message):
    folder = _touch(tmp_path / "cifar10", *names)
    if "train" in message and not any(name.startswith("test") for name in names):
        _touch(folder, "test-00000-of-00001.parquet")
    monkeypatch.setenv("STRONGREG_DATA", str(tmp_path))
    with pytest.raises(UserError, match=message) as caught:
        locate("cifar10", CIFAR10, None)
    assert str(folder) in str(caught.value)
    hub.assert_not_called()


def test_a_folder_given_that_holds_nothing_is_an_error_and_nothing_is_downloaded(tmp_path, hub):
    for place in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UserError) as caught:
            locate("cifar10", CIFAR10, place)
        message = str(caught.value)
        assert f"no files of cifar10 in {place}" in message
        assert f"put train-*-of-*.parquet and test-*-of-*.parquet of {_page(CIFAR10)}" in message
        assert f"into {place / 'cifar10'} and give --data-dir {place}, or set STRONGREG_DATA to {place}" in message
    hub.assert_not_called()


def _page(published) -> str:
    return f"https://huggingface.co/datasets/{published.repository} (folder {published.config})"


def _serve(hub: Mock, snapshot: Path, repository: Path) -> None:
    """Copy what the patterns allow, as snapshot_download does."""

    def download(*_, allow_patterns, **__):
        for file in repository.rglob("*.parquet"):
            name = file.relative_to(repository).as_posix()
            if any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns):
                (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, snapshot / name)
        return str(snapshot)

    hub.side_effect = download


@pytest.mark.parametrize("config", ["cropped_digits", ""])
def test_what_is_not_at_hand_is_downloaded_and_no_more(tmp_path, monkeypatch, hub, config):
    _complete(_touch(tmp_path / "repository" / config, "extra-00000-of-00001.parquet"))
    _complete(tmp_path / "repository" / "full_numbers")
    _serve(hub, tmp_path / "snapshot", tmp_path / "repository")
    monkeypatch.setenv("STRONGREG_DATA", str(tmp_path / "elsewhere"))
    files = locate("svhn", SVHN, None)
    assert files.folder == tmp_path / "snapshot" / config
    assert hub.call_args.args == ("ufldl-stanford/svhn",)
    assert hub.call_args.kwargs["repo_type"] == "dataset"
    assert len(list((tmp_path / "snapshot").rglob("*.parquet"))) == 2


@pytest.mark.usefixtures("hub")
def test_offline_the_error_says_which_files_to_put_where(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        locate("svhn", SVHN, None)
    message = str(caught.value)
    assert message == (
        f"svhn cannot be downloaded (no route to host): put train-*-of-*.parquet and test-*-of-*.parquet of "
        f"{_page(SVHN)} into {tmp_path / 'data' / 'svhn'} and give --data-dir data, or set STRONGREG_DATA to "
        f"{tmp_path / 'data'}"
    )


@pytest.mark.usefixtures("hub")
def test_offline_with_the_variable_set_the_error_names_its_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("STRONGREG_DATA", str(tmp_path))
    with pytest.raises(UserError, match=f"into {tmp_path / 'svhn'} and give --data-dir {tmp_path}, or set STRONGREG_D"):
        locate("svhn", SVHN, None)


def test_without_huggingface_hub_the_error_says_what_to_install_and_which_files_to_put_where(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        UserError, match=r"downloading svhn needs huggingface_hub: run pip install .*; or put train-\*.*--data-dir"
    ):
        locate("svhn", SVHN, None)


def test_a_repository_of_another_layout_is_an_error(tmp_path, hub):
    _complete(tmp_path / "repository" / "other")
    _serve(hub, _touch(tmp_path / "snapshot"), tmp_path / "repository")
    with pytest.raises(UserError, match=r"svhn holds no cropped_digits/train-\*-of-\*.parquet: put"):
        locate("svhn", SVHN, None)
