"""What Streamlit executes for a run. In a folder by itself: it takes a `pages/` beside the script for its own."""

from dashboard_app.app import main

main()
