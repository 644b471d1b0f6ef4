"""The main job on real data: some processes tune a classifier together, one is killed, and nothing is lost.

`objective` is what a user would write. `peer` is one of the processes. `processes` starts them and kills one.
`progress` reads from the study what happened, and `screen` shows it. All of them use what any user's code could use.
"""
