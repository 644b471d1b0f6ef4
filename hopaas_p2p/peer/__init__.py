"""One process that takes part in studies: its identity, its replicas, and the exchanges with the store."""
