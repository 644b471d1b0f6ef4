"""Prepares the data of a study for people, as a table of trials, as facts in words, and as charts."""
