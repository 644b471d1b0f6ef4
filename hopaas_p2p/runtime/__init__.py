"""What any process needs, independent of studies: settings, credentials, the user's own files, signals, devices."""
