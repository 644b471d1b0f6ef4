"""The rules: records, their encoding, what they do to a study, and which peer may run a trial.

The package uses no I/O, clock, threads, randomness or Optuna, so thousands of peers can be simulated in one process
with the real rules. It imports only the standard library, msgspec and `hopaas_p2p.errors`.
"""
