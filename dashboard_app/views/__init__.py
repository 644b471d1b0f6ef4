"""The pages' content, as plain functions from a State to tables and chart specifications. No Streamlit in here."""
