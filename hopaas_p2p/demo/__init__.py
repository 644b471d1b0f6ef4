"""A demo on real data: several processes tune a classifier together, and no trial is lost when one of them is killed.

`objective` is what a user would write. `peer` is one of the processes. `processes` starts them and kills one.
`progress` reads the events from the study, and `screen` shows them. All of them use only public interfaces.
"""
