"""Stores, where studies are shared: one contract (`base`), and one package or module per back end."""
