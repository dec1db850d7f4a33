"""Question files to rows with a loss mask."""
