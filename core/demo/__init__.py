"""Everything that knows the demo world: model, pictures, parts built from them, and the `demo` command's pictures."""
