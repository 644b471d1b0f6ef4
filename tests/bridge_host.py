"""A process that runs bridges for tests: lines `near far pace` come in, and each pair's bridge runs until the end."""

from __future__ import annotations

import sys
import threading

from hopaas_p2p.stores.bridge import Bridge
from hopaas_p2p.stores.bridge_ends import open_ends


def main() -> None:
    stop = threading.Event()
    threads = []
    for line in sys.stdin:
        near, far, pace = line.split()
        ends = open_ends(near, far)
        bridge = Bridge(ends.near, ends.far, crew=ends.crew, pace=float(pace))
        threads.append(threading.Thread(target=bridge.run, args=(stop.wait,)))
        threads[-1].start()
        print("running", flush=True)
    stop.set()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
