"""Run a cluster until Ctrl-C: ``python -m tests.ceph DIRECTORY``."""

from __future__ import annotations

import argparse
import signal
from pathlib import Path

from tests.ceph.cluster import Cluster, missing


def main() -> None:
    """Start it, say how to reach it, wait, and leave nothing."""
    parser = argparse.ArgumentParser(prog="python -m tests.ceph", description=__doc__)
    parser.add_argument("directory", type=Path, help="is made, and removed in the end")
    parser.add_argument("--store", choices=("memstore", "bluestore"), default="memstore")
    parser.add_argument("--auth", choices=("cephx", "none"), default="cephx")
    parser.add_argument("--host", default="127.0.0.1", help="an address of the loopback interface")
    parser.add_argument("--port", type=int, help="6789 brings 3300 with it; any by default")
    parser.add_argument("--size", type=int, default=4 << 30, help="of the disk, in bytes")
    parser.add_argument("--pool", action="append", default=[], help="create a pool for images")
    arguments = vars(parser.parse_args())
    pools = arguments.pop("pool")
    why = missing()
    if why is not None:
        parser.exit(1, f"{parser.prog}: {why}\n")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with Cluster(arguments.pop("directory"), **arguments) as cluster:
            for name in pools:
                cluster.create_pool(name)
            print(f"monitor        {cluster.endpoint.bracketed}:{cluster.port}")
            print(f"mon_host       {cluster.monitors}")
            print(f"client.libvirt {cluster.key()}")
            print(f"configuration  {cluster.conf}", flush=True)
            signal.pause()
    except FileExistsError as err:
        parser.error(str(err))
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
