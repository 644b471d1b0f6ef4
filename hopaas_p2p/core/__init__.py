"""The rules: records, their encoding, what they do to a study, and who may run a trial.

Pure. No I/O, no clock, no threads, no randomness, no Optuna: thousands of peers can be simulated in one process with
the real rules. Imports only the standard library and msgspec.
"""
