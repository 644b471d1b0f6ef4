"""The pages: one module each, with `show(page)`. See the package's docstring."""
