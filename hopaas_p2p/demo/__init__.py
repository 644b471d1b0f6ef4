"""The main job on real data: some processes tune a classifier together, one is killed, and nothing is lost.

`objective` is what a user would write. `peer` is one of the processes. `director` starts them and kills one. `story`
reads off the study what happened, and `screen` shows it. None of them knows more than any user's code could.
"""
