"""Alerts about a study, posted to a webhook by one process at a time.

`rules` decides which conditions hold: State -> texts by key, pure. `sender` posts them. The sender is elected, and an
attribute of the study holds its name and what was posted, so that its successor does not post the same again.
"""
