"""Whatever keeps Ray from starting is one line with the remedy, not a trace."""

import pytest
import ray

from platform.engine.errors import UserError
from platform.engine.runtime import ray_session
from platform.engine.schemas.runtime_settings import RuntimeConfig


@pytest.mark.parametrize(
    "error", [Exception("The current node timed out during startup.\nMore"), OSError("no space"), ValueError("x")]
)
def test_a_ray_that_does_not_start(monkeypatch, error):
    """On an overloaded machine Ray raises a plain Exception after 30 s."""

    def init(**_):
        raise error

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(UserError, match=r"Ray cannot start on this machine: .*other work on this machine") as raised:
        ray_session._start(RuntimeConfig(), ray_session.job_metadata("cluster", ""))
    assert "\n" not in str(raised.value)
