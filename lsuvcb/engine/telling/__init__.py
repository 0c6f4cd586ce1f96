"""What the user reads: the report, the survey, as text and as HTML."""
