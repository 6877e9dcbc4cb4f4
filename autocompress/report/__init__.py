"""Progress, tables and reports."""
