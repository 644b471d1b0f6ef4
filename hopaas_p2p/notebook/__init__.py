"""Shows studies in notebooks, as HTML views, plots, and a view that is kept up to date.

Everything is HTML and SVG without scripts, drawn by `hopaas_p2p.analysis`, and remains visible in saved notebooks.
Everything from the store is escaped where it is written.
"""
