"""Parquet files: spellings, and files that are damaged, foreign or wrong."""

from __future__ import annotations

import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from strongreg.experiments.data.parquet import read_parquet
from strongreg.experiments.errors import UserError

SHAPE = (3, 8, 6)


@pytest.fixture
def images(make_image, encoded):
    return [encoded(make_image(i)) for i in range(4)]


@pytest.fixture
def file(tmp_path):
    return tmp_path / "train-00000-of-00001.parquet"


def _fails(file, message, num_classes=3):
    with pytest.raises(UserError, match=message) as caught:
        read_parquet([file], SHAPE, num_classes)
    assert file.name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("image", ["img", "image"])
@pytest.mark.parametrize("label", ["label", "fine_label"])
def test_both_spellings_of_both_columns_are_read(write, file, images, make_image, image, label):
    coarse = {"coarse_label": [7] * 4, **({"label": [9] * 4} if label == "fine_label" else {})}
    write(file, images, [0, 2, 1, 2], image=image, label=label, extra=coarse)
    split, names = read_parquet([file], SHAPE, 3)
    assert split.labels.tolist() == [0, 2, 1, 2]
    assert (split.images.permute(0, 2, 3, 1).numpy() == np.stack([make_image(i) for i in range(4)])).all()
    assert names == ("0", "1", "2")


def test_several_files_follow_one_another_and_carry_the_class_names(write, tmp_path, images):
    a = write(tmp_path / "a.parquet", images[:1], [2], names=["x", "y", "z"])
    b = write(tmp_path / "b.parquet", images[1:], [0, 1, 2], names=["x", "y", "z"])
    split, names = read_parquet([a, b], SHAPE, 3)
    assert split.labels.tolist() == [2, 0, 1, 2]
    assert names == ("x", "y", "z")


def test_metadata_of_another_kind_are_no_obstacle(file, write, images):
    write(file, images, [0] * 4)
    pq.write_table(pq.read_table(file).replace_schema_metadata({"huggingface": "{"}), file)
    assert read_parquet([file], SHAPE, 3)[1] == ("0", "1", "2")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_named(file, write, images, share):
    content = write(file, images, [0] * 4).read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    _fails(file, r"is not a whole parquet file: .*[^.]; replace it$")


@pytest.mark.parametrize("content", [b"hello", b"PAR1PAR1PAR1", b"version https://git-lfs.github.com/spec/v1\n"])
def test_a_foreign_file_is_named(file, content):
    file.write_bytes(content)
    _fails(file, r"is not a whole parquet file: .*[^.]; replace it$")


def test_a_file_without_rows_is_named(file, write):
    write(file, [], [])
    _fails(file, "holds no images")


def test_other_columns_are_an_error_that_lists_them(file):
    pq.write_table(pa.table({"pixels": [1], "label": [1]}), file)
    _fails(file, "has the columns pixels, label, none of them img or image")
    pq.write_table(pa.table({"img": [1], "coarse_label": [1]}), file)
    _fails(file, "has the columns img, coarse_label, none of them fine_label or label")


@pytest.mark.parametrize("column", [[1], ["text"], [{"path": "a.png"}], [{"bytes": "text"}]])
def test_another_type_of_image_column_is_an_error(file, column):
    pq.write_table(pa.table({"img": column, "label": [1]}), file)
    _fails(file, "its column img is .*, not a struct with encoded images as bytes")


def test_another_type_of_label_column_is_an_error(file, images):
    pq.write_table(pa.table({"img": [{"bytes": images[0]}], "label": [1.0]}), file)
    _fails(file, "its column label is double, not whole numbers")


@pytest.mark.parametrize("label", [-1, 3, None])
def test_a_label_out_of_range_is_named_with_its_row(file, write, images, label):
    write(file, images, [0, 1, label, 2])
    _fails(file, f"holds the label {label} in row 2, not 0 to 2")


def test_a_missing_image_is_named_with_its_row(file, write, images):
    write(file, [*images[:3], None], [0] * 4)
    _fails(file, "holds no image in row 3")


def test_a_missing_struct_is_named_with_its_row(file, images):
    pq.write_table(pa.table({"img": [{"bytes": images[0]}, None], "label": [0, 0]}), file)
    _fails(file, "holds no image in row 1")


def test_a_damaged_image_is_named_with_its_row(file, write, images):
    write(file, [images[0], images[1][:100]], [0, 1])
    _fails(file, "the image of row 1 of .* is damaged")


def test_an_image_of_another_size_is_named_with_its_row(file, write, images, make_image, encoded):
    write(file, [images[0], encoded(make_image(0, (6, 8, 3)))], [0, 1])
    _fails(file, "the image of row 1 of .* has 8x6 pixels in RGB, but the data set has 6x8 pixels in RGB")


def test_class_names_of_another_number_are_of_another_data_set(file, write, images):
    write(file, images, [0] * 4, names=["x", "y"])
    _fails(file, "is of a data set of 2 classes, not 3")


@pytest.mark.parametrize("module", ["pyarrow", "pyarrow.parquet"])
def test_without_pyarrow_the_error_says_what_to_install(monkeypatch, file, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=r"reading parquet files needs pyarrow: run pip install '\.\[experiments\]'"):
        read_parquet([file], SHAPE, 3)
