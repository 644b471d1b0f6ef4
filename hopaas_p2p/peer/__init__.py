"""One process taking part: who it is, the thread that talks to the store, its replicas and its leases."""
