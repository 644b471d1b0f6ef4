"""Studies in notebooks: HTML views, plots, and a view that is kept up to date.

Everything is HTML and SVG, drawn by `hopaas_p2p.analysis`: nothing to install, no script, and saved notebooks keep it.
Everything from the store is escaped where it is written.
"""
