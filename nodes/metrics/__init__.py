"""The report on an edit."""
