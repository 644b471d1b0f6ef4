"""The pages' content, as plain functions from a State to tables and chart specifications. They import no Streamlit."""
