"""A Postgres database: server-side functions, each called in one round trip."""
