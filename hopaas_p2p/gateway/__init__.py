"""Servers that let others through: the gateway, beside a database, and the relay, on a login node."""
