"""The script that Streamlit runs. It has its own folder, because Streamlit treats a `pages/` beside it as pages."""

from dashboard_app.app import main

main()
