"""The monitor, a Streamlit app that reads the same store as the peers. Start it with `hopaas-p2p dashboard`.

One background thread (`replica_cache.ReplicaCache`) keeps replicas up to date; browser sessions read their latest state
and do not wait for the store. What a page shows is computed once per study and lsn, and is shared by all sessions.

    replica_cache.py  one replica per study for all sessions: `cache.frame(uuid)`, heartbeats, "data as of"
    frames.py         Frame: one study at one lsn. `frame.state`, `frame.columns`, `frame.once(function)`
    views/            plain functions of a State and its TrialTable -> tables, charts. No Streamlit. Unit-tested
    page_context.py   PageContext: the store, the study, and what this person may do (`roles.py`); given to every page
    pages/            one module per page
    redraw.py         `live(page, body)`: draws `body` now, and again only when the study's lsn has changed
    version_poll.py   the route that a browser polls for changes: 100 bytes every two seconds, without a Streamlit run
    theme.py          `draw`, `tiles`, `table`, `pill`: charts, and HTML in which every text from a store is escaped
    filters.py        the filter that pages share, kept in the address; `url.py`: links, and reading the address
    app.py            PAGES, and one run of one session: signs in, picks the study, shows the page
    access_guard.py   who may send a request: key, Host, Origin, uploads; `sign_in.py`: who signed in, and for how long
    server.py         the server around it: options, `routes.py`, `middleware.py`, `optuna_server.py`

A view is a function in `views/`, such as `def summary(state: State, columns: TrialTable) -> dict[str, float]`. It takes
a State, a table or both, returns plain data or a `Chart`, imports no Streamlit, and has a test on a hand-made study
with a known answer. Content that other programs also show, such as the table, facts, and most charts, is in
`hopaas_p2p.analysis`. A page calls a view through `frame.once`; the result is shared by all sessions and kept until the
lsn changes, so nobody may modify it.

A page is a module in `pages/` with `def show(page: PageContext) -> None`, and a line in `app.PAGES`. Content that
should follow the study is drawn inside `live`; `pages/pruning.py` is an example.

Widgets that filter a page get `bind="query-params"` and a key, so that the URL is a deep link. Text from the store goes
through `html.safe` before it enters HTML (tables do that for cells that are not `Html`), and through `theme.plain`
before it enters Markdown.
"""
