"""A cluster of three Ray nodes, in a process of its own, that does as it is told: each line of its input loses a part.

Ray reads how it is to authenticate when it is imported, so the environment must be there before.
"""

import sys

from ray.cluster_utils import Cluster


def lose(cluster, what):
    """Kills a node, the head's server, or all processes of the head's machine."""
    if what == "node":
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
    elif what == "head":
        cluster.head_node.kill_gcs_server(check_alive=False)
    else:
        cluster.head_node.kill_all_processes(check_alive=False, allow_graceful=False)


if __name__ == "__main__":
    own = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    for _ in range(2):
        own.add_node(num_cpus=1, wait=False)
    own.wait_for_nodes()
    sys.stdout.write(f"{own.address}\n")
    sys.stdout.flush()
    for line in sys.stdin:
        lose(own, line.strip())
        sys.stdout.write("done\n")
        sys.stdout.flush()
    for node in own.list_all_nodes():
        node.kill_all_processes(check_alive=False, allow_graceful=False)
