"""A Postgres database: functions of the server's, called in one round trip each."""
