"""Interfaces through which programs in other processes take part. Each carries a verb and its arguments to a trial.

`verbs` defines the requests about a trial, and carries them out. Requests come from a worker's socket (`socket`), the
server on this machine (`local`, `http`, `hopaas_rest`), MCP (`mcp`), and a ticket of the shell (`ticket`, which keeps
the end of a trial on disk if its store cannot be opened). `worker` runs a command
(`command`) for each trial in a separate process (`child`), in a job that may end (`limits`), and `batch` writes such
jobs. `client` is for a worker's command. Importing this package loads none of them.
"""
