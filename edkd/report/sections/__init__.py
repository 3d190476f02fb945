"""The sections of the report, one a file; each makes blocks of what the runs recorded."""
