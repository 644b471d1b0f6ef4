"""Shows the main use on real data. Several processes tune a classifier together, and no trial is lost when one is
killed.

`objective` is what a user would write. `peer` is one of the processes. `processes` starts them and kills one.
`progress` reads the events from the study, and `screen` shows them. All of them use only public interfaces.
"""
