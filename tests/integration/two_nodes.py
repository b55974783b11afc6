"""A Ray cluster of two nodes on this machine, one CPU each, until its standard input closes.

    python two_nodes.py FOLDER

Prints the address. A line on its standard input kills the second node with all its processes, as a power cut would,
and is answered by a line with their number.
"""

import contextlib
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil
from ray.cluster_utils import Cluster


def main() -> None:
    """The program."""
    # Cluster notes its address where `ray.init()` looks for one, and expects that folder to be there.
    Path(tempfile.gettempdir(), "ray").mkdir(exist_ok=True)
    settings: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 100 << 20, "include_dashboard": False, "temp_dir": sys.argv[1]}
    cluster = Cluster(initialize_head=True, head_node_args=settings)
    second = cluster.add_node(num_cpus=1, object_store_memory=100 << 20)
    print(cluster.address, flush=True)
    if sys.stdin.readline():
        roots = [psutil.Process(info.process.pid) for each in second.all_processes.values() for info in each]
        processes = [*roots, *(child for root in roots for child in root.children(recursive=True))]
        for process in processes:
            # A decoder may end by itself meanwhile.
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        print(len(processes), flush=True)
    sys.stdin.read()
    cluster.shutdown()


if __name__ == "__main__":
    main()
