"""Parts of features read into one array, or refused."""

import numpy as np
import pytest

from platform.engine.errors import UserError
from platform.engine.features import array_parts, read_all
from tests.platform.engine.test_neighbours import write_parts


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
