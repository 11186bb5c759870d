"""Parts of features are read into one array, or refused."""

import numpy as np
import pyarrow as pa
import pytest

from platform.engine.data.parts import PROBLEM, as_column, write_table
from platform.engine.errors import UserError
from platform.engine.inference.features import FEATURE, array_parts, read_all, stored_parts
from platform.engine.storage.location import open_storage
from tests.platform.engine.clustering.test_sharded_neighbors import write_parts


def test_parts_together_are_the_array(ray_session, tmp_path):
    values = np.arange(46, dtype=np.float32).reshape(23, 2)
    parts = array_parts(values, 5)
    assert [part.rows for part in parts] == [5, 5, 5, 4, 4] and parts[3].name(2) == "row 17"
    np.testing.assert_array_equal(read_all(parts), values)
    np.testing.assert_array_equal(read_all(write_parts(tmp_path, values, [20, 3])), values)
    assert len(array_parts(values[:2], 5)) == 2


def test_refusals(ray_session):
    values = np.ones((6, 2), np.float32)
    with pytest.raises(UserError, match="of one width: row 0 has 3 numbers, those before it 2"):
        read_all([*array_parts(values, 2), *array_parts(np.ones((4, 3)), 1)])
    values[4] = -np.inf
    with pytest.raises(UserError, match=r"row 4 holds NaN or infinity \(1 such rows of 3 there\)"):
        read_all(array_parts(values, 2))


def test_rows_with_a_problem_are_no_features(tmp_path):
    values = np.arange(12, dtype=np.float32).reshape(6, 2)
    files = [open_storage(str(tmp_path / name)) for name in ("a", "b", "c")]
    for file, rows, problems in zip(files, values.reshape(3, 2, 2), (["", "torn"], ["torn", "torn"], None), strict=True):
        columns = {FEATURE: as_column(rows)} | ({PROBLEM: problems} if problems else {})  # older files have no such column
        write_table(file, pa.table(columns))
    parts = stored_parts(files)
    assert [part.rows for part in parts] == [1, 2] and [part.file for part in parts] == [files[0], files[2]]
    np.testing.assert_array_equal(read_all(parts), values[[0, 4, 5]])
