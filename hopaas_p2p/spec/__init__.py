"""How people write a study: its space, budget, fidelity, sampler and pruner, and the metrics of its trials."""
