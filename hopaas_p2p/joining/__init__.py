"""Joining a study with one line: `invitation` is the string, `membership` holds a site's settings for the study, and
`ways` finds a route to the store.
"""
