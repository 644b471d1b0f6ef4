"""Fixtures that several files use; each group lives in a file of its own."""

pytest_plugins = [
    "tests.postgres_fixtures",
    "tests.s3_fixtures",
    "tests.tunnel_fixtures",
    "tests.site_fixtures",
    "tests.mlflow_fixtures",
]
