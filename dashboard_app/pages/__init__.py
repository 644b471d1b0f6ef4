"""The pages: one module each, with `show(here)`. See the package's docstring."""
