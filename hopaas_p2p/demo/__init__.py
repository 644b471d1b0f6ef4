"""Shows the main use on real data. Several processes tune a classifier together; one is killed; nothing is lost.

`objective` is what a user would write. `peer` is one of the processes. `processes` starts them and kills one.
`progress` reads the events from the study, and `screen` shows them. All of them use only public interfaces.
"""
