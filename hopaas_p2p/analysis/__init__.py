"""What is known of a study: its trials as columns, the facts that people read, and the charts that show them."""
