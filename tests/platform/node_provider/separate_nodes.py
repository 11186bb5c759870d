"""The provider of Ray's fake nodes, each with a folder of its own for shipped code.

All nodes of Ray's provider share one folder. A node that joins unpacks the code there anew, and so takes it away from the
processes of the others: on machines of their own, nodes cannot do that.
"""

from itertools import count
from typing import Any

from ray._private import ray_constants
from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider

_numbers = count(1)


class SeparateNodes(FakeMultiNodeProvider):
    """For test_growing.py."""

    def _create_node_with_resources_and_labels(self, *arguments: Any) -> None:
        ray_constants.DEFAULT_RUNTIME_ENV_DIR_NAME = f"runtime_resources_{next(_numbers)}"
        super()._create_node_with_resources_and_labels(*arguments)
