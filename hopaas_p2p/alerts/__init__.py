"""Alerts about a study, posted to a webhook.

`rules` decides which conditions hold, and gives a message for each; `sender` posts the messages.
"""
