"""The pages, one module each with `show(page)`. See the docstring of `dashboard_app`."""
