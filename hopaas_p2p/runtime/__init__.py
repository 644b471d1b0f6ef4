"""What any process needs, and what knows no study: settings, credentials, files of one's own, signals, devices."""
