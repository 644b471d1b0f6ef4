"""Remote access to any store: the requests of a peer to a store, who may make them, and how they are sent."""
