"""How users describe a study: its space, budget, fidelity, sampler and pruner, and the metrics of its trials."""
