"""Pictures in and out: files, contact sheets, plots."""
