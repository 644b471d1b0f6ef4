"""How a process reaches a server: proxies, trust, and the checks that `hopaas-p2p doctor` makes on the route."""
