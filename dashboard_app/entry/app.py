"""What Streamlit executes for a run. In a folder of its own: Streamlit takes a `pages/` beside the script for pages."""

from dashboard_app.app import main

main()
