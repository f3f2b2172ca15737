"""Everything that knows the demo world: its model and pictures, parts built from it, and what `semantic-editing demo` shows."""
