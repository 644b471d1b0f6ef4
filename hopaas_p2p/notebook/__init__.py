"""What a notebook shows of a study: HTML views, plots, and a view that keeps itself up to date.

All of it is HTML and SVG, drawn by `hopaas_p2p.report`'s functions: nothing to install, no script, it survives in a
saved notebook. Everything that comes from the store is escaped where it is written.
"""
