"""See docs/design/architecture.md for what belongs on this layer."""
