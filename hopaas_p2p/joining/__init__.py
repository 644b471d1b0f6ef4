"""How somebody joins a study with one line: `invitation` is the string, `membership` what a site keeps of it, `ways`
how the site reaches the store.
"""
