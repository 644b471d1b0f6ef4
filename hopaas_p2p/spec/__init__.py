"""The forms in which users describe a study: its space, budget and fidelity, and the metrics of its trials."""
