"""Samplers for a study; docs/search.md explains when to use which."""

from __future__ import annotations

from hopaas_p2p.search.samplers import CmaEsSampler, TPESampler, default_sampler

__all__ = ["CmaEsSampler", "TPESampler", "default_sampler"]
