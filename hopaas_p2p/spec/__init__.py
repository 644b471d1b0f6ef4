"""Reads the forms in which users describe a study's space, budget and fidelity, and the metrics of its trials."""
