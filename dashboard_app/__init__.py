"""The monitor: a Streamlit app that reads the same store as the peers. Start it with `hopaas-p2p dashboard`.

One background thread a store (`feed.Feed`) replays the logs; all browser sessions read what it last saw and never wait
for the store. What a page draws is computed once for each (study, lsn) and shared.

    feed.py       Feed: the replica behind all sessions; `feed.frame(uuid)`, beats, outage, "data as of"
    source.py     what the feed knows of one study; `collector.py`: when garbage is collected
    frames.py     Frame: one study at one lsn. `frame.state`, `frame.columns`, `frame.once(function)`
    views/        plain functions of a Frame's State and Columns -> tables, `spec.Chart`. No Streamlit. Unit-tested
    here.py       Here: the store, the study, and what this person may do (`roles.py`); given to every page
    registry.py   PAGES: the pages by name, in the order of the menu
    pages/        one module a page
    redraw.py     `live(here, body)`: draws `body` now, and again only when the study's lsn has changed
    pulse.py      the route by which a browser learns that: 100 bytes every two seconds, no Streamlit run
    charts.py     `draw(chart, key=...)`: the one place that renders a chart
    theme.py      colours by state, CSS, `tiles`, `table`, `pill`: HTML in which every text from a store is escaped
    notebook.py   notes, tags and files, on the pages of the study and of a trial
    filters.py    the filter that pages share, kept in the address; `url.py`: links, and what the address says
    acting.py     does what somebody asked for, through `actor.py`'s storage, and says what became of it
    app.py        one run of one session: signs in, picks the study, shows the page (`entry/app.py` calls it)
    server.py     the server around it: options, `routes.py`, `front.py` (compression, policy), `optunas.py`

A view: a function in `views/`, such as `def savings(columns: Columns) -> Savings`. It takes State, Columns or both,
returns plain data or a `Chart`, imports no Streamlit, and has a test on a hand-made study with a known answer. A page
calls it as `frame.once(views.pruning.savings)` if it takes the Frame alone; the result is shared by all sessions and
kept as long as the lsn stays, so nobody may change it.

A page: a module in `pages/` with `def show(here: Here) -> None`, and a line in `registry.PAGES`. `here` holds the
feed, the study (`here.uuid`, None when the page is about the store), the options and what this viewer may do. What
shall follow the study is drawn inside `live`:

    def show(here: Here) -> None:
        theme.title("Pruning", here)
        live(here, _body)

    def _body(here: Here, frame: Frame) -> None:
        draw(frame.once(pruning.curves), key="curves")

Widgets that a page filters by get `bind="query-params"` and a key, so that the URL is a deep link. Texts from the
store go through `theme.safe` before they enter HTML, and through `theme.plain` before they enter Markdown.
"""
