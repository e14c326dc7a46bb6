"""Networks of which some layers stay float."""
