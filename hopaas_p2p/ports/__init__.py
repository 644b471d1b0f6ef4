"""The ways in which programs in other processes take part: a verb and its arguments, carried to a trial.

`verbs` says what a request may ask of a trial, and is the only place that carries it out. A worker's socket (`socket`),
the server on this machine (`local`, `http`, `hopaas_rest`), MCP (`mcp`) and a ticket of the shell (`ticket`) carry
requests. `worker` runs a command (`command`) for each trial in a process of its own (`child`), in a job that may end
(`limits`), and `batch` writes such jobs. `client` is the side of a worker's command. Importing this package loads
nothing.
"""
