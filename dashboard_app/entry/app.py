"""The script that Streamlit runs. In its own folder, because Streamlit treats a `pages/` beside the script as pages."""

from dashboard_app.app import main

main()
