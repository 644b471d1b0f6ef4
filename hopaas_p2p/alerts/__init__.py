"""Alerts about a study, posted to a webhook.

`rules` decides which conditions hold: State -> messages by key, pure. `sender` posts them.
"""
