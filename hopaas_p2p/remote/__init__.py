"""Any store from anywhere: the requests of a peer to a store, who may make them, and how they get there."""
