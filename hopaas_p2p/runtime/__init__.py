"""Needed by any process, independent of studies: settings, credentials, the user's own files, signals, devices."""
