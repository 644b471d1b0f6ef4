"""Alerts about a study, posted to a webhook.

`rules` decides which conditions hold: State -> texts by key, pure. `sender` posts them.
"""
