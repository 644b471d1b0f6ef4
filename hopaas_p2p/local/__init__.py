"""Doors for programs of the same user that are not written with this package: agents, and other languages.

`LocalPeer` is one peer that answers requests about studies and runs trials for its clients. `http` serves it as JSON
over a Unix socket or loopback, and in the shape of Hopaas's REST interface; `mcp` serves it to agents. Each is one
process of one user, for programs of that user.
"""
