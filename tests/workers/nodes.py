"""A Ray cluster of two nodes on this machine."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def two_nodes() -> Iterator[str]:
    """The address of a cluster of two nodes with one CPU each, in a folder of its own."""
    root = Path(__file__).parents[2]
    with (
        pytest.MonkeyPatch.context() as patch,
        warnings.catch_warnings(),
        tempfile.TemporaryDirectory(prefix="sp-", ignore_cleanup_errors=True) as folder,
    ):
        warnings.simplefilter("ignore")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(root / "src"), str(root)]))
        patch.setenv("RAY_TMPDIR", folder)
        patch.setenv("RAY_worker_niceness", "0")  # by default, busy machines never get to them
        (Path(folder) / "ray").mkdir()
        from ray._private import services
        from ray.cluster_utils import Cluster

        # Older ones learn their own address by the way to a server elsewhere.
        here = "node_ip_address_from_perspective"
        patch.setattr(services, here, lambda address: "127.0.0.1", raising=False)

        head = {"num_cpus": 1, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            cluster.add_node(num_cpus=1)
            yield cluster.address
        finally:
            cluster.shutdown()
