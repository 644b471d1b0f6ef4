"""A process that runs one bridge after another: the line `near far pace` starts one, and the next line ends it."""

from __future__ import annotations

import sys
import threading

from hopaas_p2p.open import open_store
from hopaas_p2p.stores.bridge.bridge import Bridge
from hopaas_p2p.stores.bridge.endpoints import open_endpoints


def main() -> None:
    for line in sys.stdin:
        near, far, pace = line.split()
        ends, stop = open_endpoints(near, far, open_store), threading.Event()
        bridge = Bridge(ends.near, ends.far, pool=ends.pool, pace=float(pace))
        thread = threading.Thread(target=bridge.run, args=(stop.wait,))
        thread.start()
        print("running", flush=True)
        sys.stdin.readline()
        stop.set()
        thread.join()
        ends.close()
        print("stopped", flush=True)


if __name__ == "__main__":
    main()
