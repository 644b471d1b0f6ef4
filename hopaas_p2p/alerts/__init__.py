"""Alerts about a study, posted to a webhook.

`rules` finds which conditions hold, and words a message for each; `sender` posts the messages.
"""
