"""The data of a study for people: its trials as columns, facts in words, and charts."""
