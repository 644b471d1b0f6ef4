"""The shared place: one contract (`base`), one small file a back end."""
