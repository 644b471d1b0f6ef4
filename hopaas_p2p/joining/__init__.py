"""Joining a study with one line: `invitation` is the string, `membership` a site's settings for the study, `ways` how
the site reaches the store.
"""
