"""The shared place of a study: one contract (`base`), one package per back end."""
